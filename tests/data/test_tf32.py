"""TF32 on a CPU: products of fp32 round their factors to 10 bits of mantissa wherever the settings allow TF32."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sr_dist.core import plugins
from sr_dist.core.plugins import PACKAGES
from sr_dist.core.resize import imresize
from sr_dist.data import augment

aten = torch.ops.aten
PRODUCTS = (aten.mm.default, aten.bmm.default, aten.affine_grid_generator.default)  # the last is a bmm on CUDA


class TF32(TorchDispatchMode):
    """Counts the products that it has rounded."""

    rounded = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation in PRODUCTS and args[0].dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
            self.rounded += 1
            args = tuple(ten_bits(each) if isinstance(each, torch.Tensor) else each for each in args)
        return operation(*args, **(kwargs or {}))


def ten_bits(values: torch.Tensor) -> torch.Tensor:
    """Rounds 23 bits of mantissa to 10, half away from zero."""
    return ((values.contiguous().view(torch.int32) + (1 << 12)) & ~((1 << 13) - 1)).view(torch.float32)


@pytest.fixture(autouse=True)
def tf32():
    """As a recipe with `tf32: true` sets it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    assert torch.get_float32_matmul_precision() == "high"
    torch.set_float32_matmul_precision(before)


def images(side: int) -> torch.Tensor:
    return torch.randint(0, 256, (4, 3, side, side), generator=torch.Generator().manual_seed(0)) / 255


def degraded(name: str, scale: int) -> torch.Tensor:
    module, options = plugins.resolve(PACKAGES["degradation"], name, {}, "data.degradation")
    return module.build(options, scale)(images(48), torch.arange(4))


def test_the_simulation_rounds():
    """1 + 2^-11 needs 11 bits; half is rounded up, to 1 + 2^-10."""
    assert ten_bits(torch.tensor([1 + 2**-11, 1 + 2**-12, 0.3])).tolist() == [1 + 2**-10, 1, pytest.approx(0.3, rel=2**-11)]
    with TF32() as mode:
        enlarged = imresize(images(16), 2)
    assert mode.rounded == 2 and not enlarged.equal(imresize(images(16), 2))  # networks use what the recipe allows


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("name", ["bicubic", "gaussian", "real"])
def test_lr_is_made_in_fp32(name, scale):
    with TF32() as mode:
        lr = degraded(name, scale)
    assert lr.equal(degraded(name, scale)) and mode.rounded == 0


def test_a_tilt_is_made_in_fp32():
    angles = torch.tensor([0.1, -0.2, 0.3, 0.7], dtype=torch.float64)
    with TF32() as mode:
        tilted = augment.tilt(images(32), angles)
    assert tilted.equal(augment.tilt(images(32), angles)) and mode.rounded == 0
