"""MATLAB's `imresize(image, scale, 'bicubic')` with antialiasing, on tensors: the resizer of the published SR tables.

Per axis, with scale s = out / in and the cubic kernel k (a = -1/2), widened to k(s x) s when shrinking:

    u(i) = (i + 1/2) / s - 1/2                      the position of output pixel i on the input's grid
    y(i) = sum_j w(i, j) x(j),  w(i, j) = k(u(i) - j), normalized to sum to one; pixels outside are mirrored, edge included

PIL's and torch's bicubic renormalize at the borders instead of mirroring. MATLAB before 2015 repeated the edge
(`border="replicate"`), and the usual Set5 was made that way. For 8-bit images MATLAB resizes the columns first and rounds between
the two passes; `to_8_bit` does the same.

An axis is cut into blocks of outputs. The matrix of a block has only the inputs that the block sees, so large images cost time
and memory in proportion to their pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from sr_dist.core.constants import once

Border = Literal["mirror", "replicate"]
BLOCK = 64  # pixels of the larger of input and output
ONE_BLOCK = 256  # pixels up to which an axis is one block, so training crops are two products


def imresize(images: Tensor, scale: float, *, to_8_bit: bool = False, border: Border = "mirror") -> Tensor:
    """(..., H, W) -> (..., ceil(H scale), ceil(W scale)); `to_8_bit` rounds and clips as MATLAB does for uint8 images."""
    if torch.compiler.is_exporting() and scale >= 1 and scale == int(scale) and not to_8_bit and border == "mirror":
        return _upscale(_upscale(images, int(scale)).mT, int(scale)).mT
    (height, width), kind = images.shape[-2:], (images.dtype, images.device)
    device = "cpu" if images.is_meta else images.device.type  # only shapes: autocast does not know the meta device
    with full_precision(device) if to_8_bit else torch.autocast(device, enabled=False):
        columns = [(block, _columns(block[:2], width, scale, border, *kind)) for block in _axis_blocks(width, scale)]
        rows = [(block, _rows(block[:2], height, scale, border, *kind)) for block in _axis_blocks(height, scale)]
        return torch.cat([_resize_rows(images, block, matrix, columns, to_8_bit) for block, matrix in rows], -2)


def _resize_rows(
    images: Tensor, block: Block, matrix: Tensor, columns: Sequence[tuple[Block, Tensor]], to_8_bit: bool
) -> Tensor:  # fmt: skip
    """The output rows of one block. Both passes at once, so that large images stay in the processor's cache."""
    inside = images[..., block[2] : block[3], :]
    # In levels of 0..255: an exact half must stay exact, because halves are rounded up.
    rows = _round_levels(matrix @ (inside * 255).round()) if to_8_bit else matrix @ inside
    resized = torch.cat([rows[..., low:high] @ transposed for (_, _, low, high), transposed in columns], -1)
    return _round_levels(resized) / 255 if to_8_bit else resized


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


Outputs = tuple[int, int]  # of one axis: the first, and the one after the last
Block = tuple[int, int, int, int]  # these, and the inputs that they see: low, high


def _axis_blocks(size: int, scale: float) -> list[Block]:
    """Compiled networks have one block, because torch.compile takes one constant from a function."""
    out = math.ceil(size * scale)
    one = torch.compiler.is_compiling() or max(size, out) <= ONE_BLOCK
    length = out if one else max(int(BLOCK * min(scale, 1.0)), 1)
    parts = [(first, min(first + length, out)) for first in range(0, out, length)]
    return [(*part, *_seen(*part, size, scale)) for part in parts]


@torch.compiler.assume_constant_result
def _rows(outputs: Outputs, size: int, scale: float, border: Border, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(outputs, inputs)"""
    return once(("rows", outputs, size, scale, border), lambda: _new_matrix(*outputs, size, scale, border), dtype, device)


@torch.compiler.assume_constant_result
def _columns(outputs: Outputs, size: int, scale: float, border: Border, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(inputs, outputs)"""
    return once(("columns", outputs, size, scale, border), lambda: _new_matrix(*outputs, size, scale, border).T, dtype, device)


def _new_matrix(first_output: int, end: int, size: int, scale: float, border: Border) -> Tensor:
    """In float64."""
    stretch = min(scale, 1.0)  # antialiasing: the kernel is wider when shrinking
    reach = 4 / stretch
    position = (torch.arange(first_output, end, dtype=torch.float64) + 0.5) / scale - 0.5
    first = torch.floor(position - reach / 2)
    taps = first[:, None] + torch.arange(math.ceil(reach) + 2, dtype=torch.float64)  # (outputs, taps)
    weights = cubic((position[:, None] - taps) * stretch)
    weights = weights / weights.sum(1, keepdim=True)
    if border == "replicate":
        inside = taps.long().clamp(0, size - 1)
    else:
        mirrored = taps.long().remainder(2 * size)
        inside = torch.where(mirrored < size, mirrored, 2 * size - 1 - mirrored)
    low, high = _seen(first_output, end, size, scale)
    return torch.zeros(end - first_output, high - low, dtype=torch.float64).scatter_add_(1, inside - low, weights)


def _seen(start: int, end: int, size: int, scale: float) -> tuple[int, int]:
    """The inputs that a block of outputs sees, mirrored ones included. Not read from tensors, which may have no numbers."""
    reach = 4 / min(scale, 1.0)
    first, last = (math.floor((output + 0.5) / scale - 0.5 - reach / 2) for output in (start, end - 1))
    last += math.ceil(reach) + 1
    if first < -size or last >= 2 * size:  # mirrored more than once
        return 0, size
    low, high = max(first, 0), min(last + 1, size)
    return min(low, 2 * size - 1 - last, size - 1), max(high, -first, 1)


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
