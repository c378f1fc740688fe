import pytest
import torch

from sr_dist.core import config
from sr_dist.recipe import checks
from sr_dist.recipe.sections import Recipe
from sr_dist.tools.flops import Work, peak, per_image, work


def chosen(**changes):
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
    enlarging = 3 * (2 * 32 * 16 * 16 + 2 * 32 * 16 * 32)  # two matrix products per colour, bicubic: forward alone
    assert per_image(chosen()) == 3 * sum(forward) - forward[0] + enlarging


def test_a_critic_costs_its_own_step_and_the_generators_through_it():
    critic = {"name": "patch"}
    objective = {"name": "srgan", "content": {"l1": 1.0}, "adversarial_weight": 1e-3}
    gan = chosen(objective=objective, discriminator=critic)
    assert per_image(gan) > per_image(chosen()) * 1.01
    assert per_image(gan) == per_image(gan.model_copy(update={"accumulate": 4}))


def test_counting_leaves_nothing_behind():
    """Neither in the generator of random numbers nor in whatever remembers tensors between calls."""
    from sr_dist.core.resize import imresize

    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    per_image(chosen())
    assert torch.equal(torch.rand(2), expected)
    assert imresize(torch.rand(1, 3, 16, 16), 2).sum().isfinite()


def test_what_cannot_be_counted_is_left_out(monkeypatch, caplog):
    whole = chosen()
    whole = whole.model_copy(update={"data": whole.data.model_copy(update={"crop": None})})
    assert work(whole, 1, torch.device("cpu")) is None
    monkeypatch.setattr("sr_dist.tools.flops.per_image", lambda chosen: 1 / 0)
    assert work(chosen(), 1, torch.device("cpu")) is None


def test_a_cpu_has_operations_and_no_known_peak():
    found = work(chosen(), 4, torch.device("cpu"))
    assert found == Work(per_image(chosen()), 4, None)


@pytest.mark.parametrize(
    ("device", "precision", "tf32", "expected"),
    [
        ("NVIDIA H200", "bf16", True, 989),
        ("NVIDIA H100 80GB HBM3", "no", True, 494),
        ("NVIDIA H100 PCIe", "fp16", False, 756),
        ("NVIDIA A100-SXM4-80GB", "bf16", True, 312),
        ("NVIDIA A100-SXM4-80GB", "no", False, 19.5),
        ("NVIDIA A10G", "bf16", True, 70),
        ("NVIDIA L40S", "bf16", True, 362),
        ("NVIDIA L4", "bf16", True, 121),
        ("NVIDIA RTX 6000 Ada Generation", "bf16", True, 364),
        ("NVIDIA GeForce RTX 4090", "bf16", True, 165.2),
        ("Tesla V100-SXM2-16GB", "no", True, 15.7),
        ("Tesla T4", "fp16", True, 65),
        ("NVIDIA GeForce GTX 1080", "no", True, None),
        ("", "no", True, None),
    ],
)
def test_peaks_are_of_the_device_and_the_precision(device, precision, tf32, expected):
    assert peak(device, precision, tf32) == expected
