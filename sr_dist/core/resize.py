"""MATLAB's `imresize(image, scale, 'bicubic')` with antialiasing, on tensors: the resizer of the published SR tables.

Per axis, with scale s = out / in and the cubic kernel k (a = -1/2), widened to k(s x) s when shrinking:

    u(i) = (i + 1/2) / s - 1/2                      the position of output pixel i on the input's grid
    y(i) = sum_j w(i, j) x(j),  w(i, j) = k(u(i) - j), normalized to sum to one; pixels outside are mirrored, edge included

PIL's and torch's bicubic renormalize at the borders instead of mirroring. MATLAB before 2015 repeated the edge
(`border="replicate"`), and the usual Set5 was made that way. For 8-bit images MATLAB resizes the columns first and rounds between
the two passes; `to_8_bit` does the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from sr_dist.core.constants import once

Border = Literal["mirror", "replicate"]


def imresize(images: Tensor, scale: float, *, to_8_bit: bool = False, border: Border = "mirror") -> Tensor:
    """(..., H, W) -> (..., ceil(H scale), ceil(W scale)); `to_8_bit` rounds and clips as MATLAB does for uint8 images."""
    if torch.compiler.is_exporting() and scale >= 1 and scale == int(scale) and not to_8_bit and border == "mirror":
        return _upscale(_upscale(images, int(scale)).mT, int(scale)).mT
    rows = _axis_matrix(images.shape[-2], scale, border, images.dtype, images.device)
    columns = _axis_matrix(images.shape[-1], scale, border, images.dtype, images.device).T
    device = "cpu" if images.is_meta else images.device.type  # only shapes: autocast does not know the meta device
    if not to_8_bit:
        with torch.autocast(device, enabled=False):
            return rows @ images @ columns
    with full_precision(device):
        # In levels of 0..255: an exact half must stay exact, because halves are rounded up.
        return _round_levels(_round_levels(rows @ (images * 255).round()) @ columns) / 255


@contextmanager
def full_precision(device: str) -> Iterator[None]:
    """Around products that make training data. bf16 has 8 bits of mantissa and TF32 has 10, too few for 8-bit images: TF32
    changes up to 13 % of the pixels by a level. Networks use what the recipe allows."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def rounded(images: Tensor) -> Tensor:
    """Float images in [0, 1], rounded as an 8-bit file stores them."""
    return _round_levels(images * 255) / 255


def _round_levels(values: Tensor) -> Tensor:
    return (values + 0.5).floor().clamp(0, 255)


def cubic(x: Tensor) -> Tensor:
    x = x.abs()
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return torch.where(x <= 1, near, torch.where(x <= 2, far, torch.zeros_like(x)))


@torch.compiler.assume_constant_result
def _axis_matrix(size: int, scale: float, border: Border, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The (out, size) matrix of one axis."""
    key = ("resize", size, scale, border)
    return once(key, lambda: _new_axis_matrix(size, math.ceil(size * scale), scale, border), dtype, device)


def _new_axis_matrix(size: int, out: int, scale: float, border: Border) -> Tensor:
    """In float64."""
    stretch = min(scale, 1.0)  # antialiasing: the kernel is wider when shrinking
    reach = 4 / stretch
    position = (torch.arange(out, dtype=torch.float64) + 0.5) / scale - 0.5
    first = torch.floor(position - reach / 2)
    taps = first[:, None] + torch.arange(math.ceil(reach) + 2, dtype=torch.float64)  # (out, taps)
    weights = cubic((position[:, None] - taps) * stretch)
    weights = weights / weights.sum(1, keepdim=True)
    if border == "replicate":
        inside = taps.long().clamp(0, size - 1)
    else:
        mirrored = taps.long().remainder(2 * size)
        inside = torch.where(mirrored < size, mirrored, 2 * size - 1 - mirrored)
    return torch.zeros(out, size, dtype=torch.float64).scatter_add_(1, inside, weights)


def _upscale(images: Tensor, scale: int) -> Tensor:
    """Upscales the last axis by an integer, with operations that export to graphs for images of any size.

    An output pixel depends on the input pixel that it lies in and on two neighbours on either side; the weights repeat.
    """
    size = images.shape[-1]
    position = (torch.arange(scale, dtype=torch.float64) + 0.5) / scale - 0.5
    weights = cubic(position[:, None] - torch.arange(-2, 3))  # (scale, 5)
    neighbours = torch.arange(-2, size + 2, device=images.device)
    neighbours = torch.where(neighbours < 0, -1 - neighbours, neighbours)
    mirrored = images[..., torch.minimum(neighbours, 2 * size - 1 - neighbours).clamp(min=0)]  # (..., size + 4)
    taps = torch.stack([mirrored[..., tap : tap + size] for tap in range(5)], -1)  # (..., size, 5)
    return (taps @ weights.to(images).T).flatten(-2)
