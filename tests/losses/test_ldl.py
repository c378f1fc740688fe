"""LDL against its definition, written out with numpy's arithmetic alone, and the averaged generator's image in a training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from processes import losses, run, small_gan
from safetensors.torch import load_file
from torch import Tensor

from sr_dist.core.batch import Batch
from sr_dist.core.errors import UserError
from sr_dist.core.launch_env import Launch
from sr_dist.losses.content import ldl
from sr_dist.recipe import checks
from sr_dist.tools import flops, memory


def by_definition(sr: Tensor, hr: Tensor, average: Tensor) -> float:
    """Every window cut out, in float64."""
    values = []
    for one, target, mean in zip(*(images.double().numpy() for images in (sr, hr, average)), strict=True):
        residual, other = abs(target - one).sum(0), abs(target - mean).sum(0)
        padded = np.pad(residual, 3, mode="reflect")
        for row in range(residual.shape[0]):
            for column in range(residual.shape[1]):
                window = padded[row : row + 7, column : column + 7]
                weight = residual.var(ddof=1) ** 0.2 * window.var(ddof=1)
                wrong = residual[row, column] >= other[row, column]
                values += list(wrong * weight * abs(target - one)[:, row, column])
    return float(np.mean(values))


def loss(sr: Tensor, hr: Tensor, average: Tensor) -> Tensor:
    batch = Batch(hr[..., ::2, ::2], hr, torch.full((len(hr),), -1), ("x",) * len(hr), average=average)
    return ldl.build(ldl.Config())(sr, batch)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("error", [1.0, 1e-3])
def test_the_loss_is_the_definition(channels, error):
    """Also for residuals far smaller than the pixels, where a variance of sums of squares would lose its digits."""
    generator = torch.Generator().manual_seed(3)
    hr, *noise = (torch.rand(2, channels, 9, 12, generator=generator) for _ in range(3))
    sr, average = (hr + error * (one - 0.5) + error for one in noise)
    expected = by_definition(sr, hr, average)
    assert float(loss(sr, hr, average)) == pytest.approx(expected, rel=1e-3 if error < 1 else 1e-5)
    assert 0 < expected < by_definition(sr, hr, sr)  # some pixels are closer than the average's, and have no weight


def test_pixels_that_are_closer_than_the_averages_have_no_gradient():
    hr = torch.zeros(1, 3, 8, 8)
    sr = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    value = loss(sr, hr, torch.full((1, 3, 8, 8), 2.0))
    value.backward()
    assert value.item() == 0 and (sr.grad == 0).all()


def test_residuals_that_are_the_same_everywhere_have_the_gradient_0():
    """The fifth root has an infinite slope at 0."""
    hr = torch.rand(1, 3, 8, 8)
    sr = hr.clone().requires_grad_()
    value = loss(sr, hr, hr)
    value.backward()
    assert value.item() == 0 and (sr.grad == 0).all()


CONTENT = "{l1: 1.0, ldl: 100.0}"


def test_a_training_compares_with_the_average_and_resumes_exactly(photo_shards, tmp_path):
    """Two steps and two more are the bits of four. Another average gives other losses from the second step on."""

    def train(name: str, steps: int, **more: object) -> list[dict[str, float]]:
        words = small_gan(photo_shards, tmp_path, name=name, steps=steps, data__batch=4, objective__content=CONTENT, **more)
        run(0, "sr_dist.train", *words)
        return losses(tmp_path / name)

    whole, _ = train("whole", 4), train("parts", 2)
    assert train("parts", 4) == whole and all(row["loss/ldl"] > 0 for row in whole)
    ours, theirs = (
        load_file(tmp_path / name / "checkpoints" / "0000004" / "generator.safetensors") for name in ("whole", "parts")
    )
    assert all(ours[key].equal(theirs[key]) for key in ours)
    other = train("other", 4, ema__decay=0.01)
    assert other[0] == whole[0] and other[2]["loss/ldl"] != whole[2]["loss/ldl"]


def recipe(**overrides: str):
    return checks.read_recipe("rrdb_psnr_x4", {"objective.content": CONTENT, "data.crop": "32", **overrides})


def test_it_is_refused_without_an_average_and_where_the_average_is_in_parts():
    with pytest.raises(UserError, match=r"^objective\.content\.ldl: it compares with the averaged generator; ema\.decay: 0 "):
        checks.complete(recipe(**{"ema.decay": "0"}))
    checks.check_launch(recipe(), Launch("deepspeed", stage=2, ranks=2))
    with pytest.raises(UserError, match=r"^objective\.content\.ldl: it would collect .* use stage 1, 2 or DDP$"):
        checks.check_launch(recipe(), Launch("deepspeed", stage=3, ranks=2))


def test_its_forward_pass_is_counted():
    """A step of the generator alone is a forward and two passes back, so it costs a third more. It keeps no activations of the
    average: only its own of the images."""
    small = {"generator.num_blocks": "1", "generator.width": "8", "generator.growth": "4"}
    plain, ours = (checks.complete(recipe(**small, **more)) for more in ({"objective.content": "{l1: 1.0}"}, {}))
    assert flops.per_image(ours) / flops.per_image(plain) == pytest.approx(4 / 3, rel=0.02)
    more = memory.activations(ours, 2)["generator"] / memory.activations(plain, 2)["generator"]
    assert 1 < more < 1.5
