"""Operations per image: worked out by hand, counted once per recipe, and compared with the peak of a GPU."""

import json
import shutil

import pytest
import torch

from sr_dist.core import config
from sr_dist.recipe import checks
from sr_dist.recipe.sections import Recipe
from sr_dist.tools import flops
from sr_dist.tools.flops import per_image, per_image_once
from sr_dist.training.networks import phase_network
from sr_dist.training.throughput import Work, peak, work

PLUGIN = """
from torch import nn
from sr_dist.core.config import Settings

class Config(Settings):
    pass

def build(config, scale):
    return nn.Sequential(nn.Upsample(scale_factor=scale), nn.Conv2d(3, 3, 3, padding=1, bias=False))
"""


def complete(**changes):
    tree = {
        "name": "run", "scale": 2, "steps": 10, "data": {"train": "x", "crop": 32, "batch": 8},
        "generator": {"name": "srcnn", "skip": "none"}, "objective": {"name": "pixel", "content": {"l1": 1.0}}, "optimizer": {},
        **changes,
    }  # fmt: skip
    return checks.complete(config.typed(Recipe, config.parse(config.text(config.typed(Recipe, tree)))))


def convolution(outputs, inputs, side, pixels):
    """A multiplication and an addition per weight and pixel."""
    return 2 * outputs * inputs * side * side * pixels


def test_srcnn_by_hand():
    """Forward once; backward a product for the weights and one for the input, which the first layer's does not need."""
    from sr_dist.models.generators import srcnn

    layers = [m for m in srcnn.build(srcnn.Config(), 2).modules() if isinstance(m, torch.nn.Conv2d)]
    forward = [convolution(m.out_channels, m.in_channels, m.kernel_size[0], 32 * 32) for m in layers]
    upsampling = 3 * (2 * 32 * 16 * 16 + 2 * 32 * 16 * 32)  # bicubic, forward only: two matrix products per channel
    assert per_image(complete()) == 3 * sum(forward) - forward[0] + upsampling


def test_a_discriminator_costs_its_own_step_and_the_generators_gradient_through_it():
    objective = {"name": "srgan", "content": {"l1": 1.0}, "adversarial_weight": 1e-3}
    gan = complete(objective=objective, discriminator={"name": "patch"})
    assert per_image(gan) > per_image(complete()) * 1.01
    assert per_image(gan) == per_image(gan.model_copy(update={"accumulate": 4}))


def products(network, *inputs):
    """(all layers, the first layer): operations of a forward pass over one image, from the shapes that its layers see."""
    amounts = []

    def count(layer, _, output):
        inner = layer.weight[0].numel()  # multiplications per output
        amounts.append(2 * inner * output.numel() / len(output))

    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    network(*inputs)
    for hook in hooks:
        hook.remove()
    return sum(amounts), amounts[0]


def test_a_step_of_a_gan_by_its_layers():
    """The generator: forward and twice that back, and the discriminator forward and back to its input. The discriminator: real
    and fake, forward and twice that back. The gradient of a network's own input is needed by nobody."""
    objective = {"name": "srgan", "content": {"l1": 1.0}, "adversarial_weight": 1e-3}
    generator, discriminator = {"name": "msrresnet", "num_blocks": 1, "width": 8}, {"name": "patch", "widths": [8, 8]}
    gan = complete(objective=objective, generator=generator, discriminator=discriminator)
    networks = {phase: phase_network(gan, phase, resuming=True, notes=[]) for phase in ("generator", "discriminator")}
    g, g_first = products(networks["generator"], torch.rand(2, 3, 16, 16))
    d, d_first = products(networks["discriminator"], torch.rand(2, 3, 32, 32))
    assert per_image(gan) == 3 * g - g_first + 2 * d + 2 * (3 * d - d_first)


def test_counting_changes_no_state():
    """Neither the random number generator nor caches that keep tensors between calls."""
    from sr_dist.core.resize import imresize

    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    per_image(complete())
    assert torch.equal(torch.rand(2), expected)
    assert imresize(torch.rand(1, 3, 16, 16), 2).sum().isfinite()


@pytest.fixture
def counted(monkeypatch):
    """The recipes that are counted; each count is another number."""
    recipes = []

    def count(recipe):
        recipes.append(recipe)
        return float(len(recipes))

    monkeypatch.setattr(flops, "per_image", count)
    return recipes


def test_a_recipe_is_counted_once(monkeypatch):
    count = per_image_once(complete())
    assert count == per_image(complete())

    def refuse(recipe):
        raise AssertionError("counted a second time")

    monkeypatch.setattr(flops, "per_image", refuse)
    assert per_image_once(complete()) == count
    assert per_image_once(complete(name="other", steps=99, optimizer={"learning_rate": 1.0})) == count


def test_another_crop_or_network_is_counted_anew(counted):
    crop = complete(data={"train": "x", "crop": 64, "batch": 8})
    network = complete(generator={"name": "srcnn", "skip": "none", "widths": [8, 4]})
    assert [per_image_once(recipe) for recipe in (complete(), crop, network)] == [1, 2, 3]
    assert [per_image_once(recipe) for recipe in (complete(), crop, network)] == [1, 2, 3]


def test_an_edited_plug_in_file_is_counted_anew(counted, monkeypatch, tmp_path):
    file = tmp_path / "lab_flops" / "own.py"
    file.parent.mkdir()
    file.write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    own = complete(generator={"name": "lab_flops.own"})
    assert [per_image_once(own), per_image_once(own)] == [1, 1]
    file.write_text(PLUGIN.replace("3, 3, 3, padding=1", "3, 3, 5, padding=2"))
    assert [per_image_once(own), per_image_once(own)] == [2, 2]


def test_a_damaged_file_in_the_cache_is_replaced(counted, cache):
    assert per_image_once(complete()) == 1
    (file,) = (cache / "sr_dist" / "operations").iterdir()
    for content in ("{", "[]", "{}", '{"flops_per_image": null}'):
        counted.clear()
        file.write_text(content)
        assert [per_image_once(complete()), per_image_once(complete())] == [1, 1]
        assert len(counted) == 1


def test_a_cache_that_cannot_be_written_is_no_error(counted, cache):
    shutil.rmtree(cache)
    cache.write_text("a file in place of the folder")
    assert [per_image_once(complete()), per_image_once(complete())] == [1, 2]


def test_a_recipe_that_cannot_be_counted_has_no_count(monkeypatch):
    whole = complete()
    whole = whole.model_copy(update={"data": whole.data.model_copy(update={"crop": None})})
    assert per_image_once(whole) is None
    monkeypatch.setattr(flops, "per_image", lambda recipe: 1 / 0)
    assert per_image_once(complete()) is None
    assert work(None, whole, 1, torch.device("cpu")) is None


def test_the_share_of_the_peak_is_reported_only_for_a_known_gpu(monkeypatch):
    cpu = work(5e9, complete(), 4, torch.device("cpu"))
    assert cpu == Work(5e9, 4, None)
    assert cpu.at(800.0) == {"tflops": 1.0}  # 800 images/s on 4 ranks: 200 x 5 GFLOP each
    names = iter(["NVIDIA GeForce GTX 1080", "NVIDIA H100 80GB HBM3"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: next(names))
    unknown, known = (work(5e9, complete(precision="bf16"), 4, torch.device("cuda")) for _ in range(2))
    assert unknown.at(800.0) == {"tflops": 1.0}
    assert known.at(800.0) == {"tflops": 1.0, "mfu": 1 / 989}


@pytest.mark.parametrize(
    ("device", "precision", "tf32", "expected"),
    [
        ("NVIDIA H200", "bf16", True, 989),
        ("NVIDIA H100 80GB HBM3", "no", True, 494),
        ("NVIDIA H100 PCIe", "fp16", False, 756),
        ("NVIDIA A100-SXM4-80GB", "bf16", True, 312),
        ("NVIDIA A100-SXM4-80GB", "no", False, 19.5),
        ("NVIDIA L40S", "bf16", True, 362),
        ("NVIDIA L4", "bf16", True, 121),
        ("NVIDIA RTX 6000 Ada Generation", "bf16", True, 364),
        ("NVIDIA GeForce RTX 4090", "bf16", True, 165.2),
        ("NVIDIA A10G", "bf16", True, None),
        ("Tesla V100-SXM2-16GB", "no", True, None),
        ("Tesla T4", "fp16", True, None),
        ("NVIDIA GeForce GTX 1080", "no", True, None),
        ("", "no", True, None),
    ],
)
def test_the_peak_depends_on_the_device_and_the_precision(device, precision, tf32, expected):
    assert peak(device, precision, tf32) == expected


def test_terms_with_networks_and_without_autocast_are_counted(tmp_path):
    """The meta device, on which operations are counted, has no autocast. The networks of two terms are loaded from packages and
    files onto the CPU. Such a network runs forward for SR and HR and backward to SR: three times its 3 x 3 layer at least."""
    torch.jit.script(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten())).save(tmp_path / "own.pt")

    def operations(**terms):
        small = {"generator.num_blocks": "1", "generator.width": "8", "generator.growth": "4"}
        content = {"objective.content": json.dumps({"l1": 1.0, **terms})}
        return per_image(checks.complete(checks.read_recipe("rrdb_psnr_x4", {**small, **content})))

    alone = operations()
    assert operations(focal_frequency=1.0) >= alone > 0
    assert operations(embedding={"model": str(tmp_path / "own.pt")}) - alone == 3 * convolution(4, 3, 3, 126 * 126)
    assert operations(lpips={"weights": "random"}) - alone > 3 * convolution(64, 3, 11, 31 * 31)
