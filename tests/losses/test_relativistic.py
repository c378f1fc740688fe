"""The relativistic average over ranks: two real processes with 2 and 3 images against one process with all 5."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sr_dist.core import plugins, ranks
from sr_dist.core.batch import Batch, DiscriminatorOutput
from sr_dist.losses.adversarial import relative

IMAGES, PARTS = 5, (slice(0, 2), slice(2, 5))
SETTINGS = {
    "global": {"batch_mean": "global"},
    "local": {"batch_mean": "local"},
    "halved with r1": {"batch_mean": "global", "halved": True, "r1_weight": 0.5},
}


class Discriminator(nn.Module):
    """A logit per patch, nonlinear enough that the mean matters."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Tanh(), nn.Conv2d(6, 1, 3, 1, 1))

    def forward(self, images: Tensor) -> DiscriminatorOutput:
        return DiscriminatorOutput(20 * self.body(images).squeeze(1), None)


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(3)
    return nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(3, 3, 3, padding=1)), Discriminator()


def images() -> Batch:
    draw = torch.Generator().manual_seed(0)
    hr, lr = torch.rand(IMAGES, 3, 8, 8, generator=draw), torch.rand(IMAGES, 3, 4, 4, generator=draw)
    level = torch.arange(IMAGES).view(-1, 1, 1, 1) / IMAGES  # unlike images on the two ranks
    return Batch(lr * level, hr * (1 - level), torch.full((IMAGES,), -1), tuple("abcde"))


def one_step(options: dict, part: slice, wrap=lambda network: network) -> tuple[dict[str, float], dict[str, Tensor]]:
    """This part's contribution to the losses, and the gradients, scaled as in training."""
    module, config = plugins.resolve("sr_dist.objectives", "esrgan", {"content": {"l1": 1e-2}, **options}, "objective")
    objective, whole = module.Objective(config), images()
    batch = Batch(whole.lr[part], whole.hr[part], whole.label[part], whole.keys[part])
    share = len(batch) / IMAGES
    generator, discriminator = networks()
    engine_g, engine_d = wrap(generator), wrap(discriminator)
    discriminator.requires_grad_(False)
    sr = objective(engine_g, batch)
    terms = objective.generator_loss(discriminator, batch, sr)
    (sum(terms.values()) * share * ranks.size()).backward()
    discriminator.requires_grad_(True)
    more = objective.discriminator_loss(engine_d, batch, sr.detach())
    (sum(more.values()) * share * ranks.size()).backward()
    losses = {name: share * value.item() for name, value in {**terms, **more}.items()}
    return losses, {f"{n}.{k}": p.grad for n, m in (("g", generator), ("d", discriminator)) for k, p in m.named_parameters()}


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    actual = {name: one_step(options, PARTS[rank], DistributedDataParallel) for name, options in SETTINGS.items()}
    mean = ranks.global_mean(torch.tensor([[1.0, 3.0]] if rank == 0 else [[5.0, 7.0], [9.0, 11.0]]))
    torch.save({"steps": actual, "mean": mean}, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict]:
    folder: Path = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(process, (str(folder),), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


@pytest.fixture(scope="module")
def one() -> dict:
    return {name: one_step(options, slice(None)) for name, options in SETTINGS.items()}


@pytest.mark.parametrize("name", ["global", "halved with r1"])
def test_the_global_mean_gives_one_processs_losses_and_gradients(one, two, name):
    losses, gradients = one[name]
    for key, value in losses.items():
        assert two[0]["steps"][name][0][key] + two[1]["steps"][name][0][key] == pytest.approx(value, rel=1e-5), key
    for rank in (0, 1):
        actual = two[rank]["steps"][name][1]
        assert actual.keys() == gradients.keys()
        for key, gradient in gradients.items():
            torch.testing.assert_close(actual[key], gradient, atol=2e-6, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}")


def test_the_local_mean_is_another_loss_on_two_ranks(one, two):
    losses, gradients = one["local"]
    assert losses == pytest.approx(one["global"][0])  # in one process they are the same
    actual = two[0]["steps"]["local"]
    assert abs(actual[0]["real"] + two[1]["steps"]["local"][0]["real"] - losses["real"]) > 1e-3
    assert max((actual[1][key] - gradients[key]).abs().max() / gradients[key].abs().max() for key in gradients) > 0.01


def test_the_mean_is_over_images_not_over_ranks(two):
    """(2 + 6 + 10) / 3 = 6; the mean of the ranks' means would be (2 + 8) / 2 = 5."""
    assert [actual["mean"].item() for actual in two] == [6.0, 6.0]


def test_the_mean_of_the_logits_has_a_gradient():
    """C(a) - E[C(b)]: -1/n for every b."""
    a, b = torch.zeros(2), torch.zeros(4, requires_grad=True)
    relative(a, b, "global")[0].backward()
    assert b.grad.tolist() == [-0.25] * 4
