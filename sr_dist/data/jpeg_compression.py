"""JPEG compression and decompression of batches of tensors. Each image has its own quality.

    RGB -> YCbCr in 8 bits -> chroma at half size -> DCT of 8 x 8 blocks -> divided by the quality's table, rounded -> back

As in libjpeg: the tables of the standard's Annex K are scaled by the quality, and chroma is averaged over 2 x 2 pixels and
enlarged with a triangle filter. Entropy coding is lossless and is left out. The result has no gradient, because it is rounded.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sr_dist.core.colour import LUMA
from sr_dist.core.constants import numbers, once

LUMINANCE = (
    16, 11, 10, 16, 24, 40, 51, 61,
    12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77,
    24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
CHROMINANCE = (
    17, 18, 24, 47, 99, 99, 99, 99,
    18, 21, 26, 66, 99, 99, 99, 99,
    24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99,
    *[99] * 32,
)  # fmt: skip
RGB_TO_YCC = (LUMA, (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))
YCC_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136286, -0.714136286), (1.0, 1.772, 0.0))


def jpeg(images: Tensor, quality: Tensor) -> Tensor:
    """(B, 1 or 3, H, W) in [0, 1] with sides that divide by 16, and (B,) qualities from 1 to 100 -> the same, in 8 bits."""
    assert images.shape[-2] % 16 == 0 and images.shape[-1] % 16 == 0, images.shape
    levels = (images * 255).round().clamp(0, 255)
    if images.shape[1] == 1:
        return quantize(levels, tables(quality, LUMINANCE)) / 255
    ycc = _convert(levels, RGB_TO_YCC)
    ycc[:, 1:] += 128
    ycc = ycc.round().clamp(0, 255)
    batch, _, height, width = images.shape
    small = ycc[:, 1:].view(batch, 2, height // 2, 2, width // 2, 2).mean((3, 5))
    of_luma, of_chroma = tables(quality, LUMINANCE + CHROMINANCE).view(-1, 2, 8, 8).unbind(1)
    luma = quantize(ycc[:, :1], of_luma)
    chroma = _enlarge(_enlarge(quantize(small.round(), of_chroma), 3), 2).round()
    return _convert(torch.cat([luma, chroma - 128], 1), YCC_TO_RGB).round().clamp(0, 255) / 255


def tables(quality: Tensor, standard: tuple[int, ...]) -> Tensor:
    """The quantization tables of libjpeg at each quality: (B, 8, 8), or more for several tables one after the other."""
    quality = quality.double()
    percent = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality).floor()[:, None]
    scaled = (numbers(standard, torch.float64, quality.device) * percent + 50) / 100
    return scaled.floor().clamp(1, 255).view(-1, 8, 8)


def quantize(levels: Tensor, table: Tensor) -> Tensor:
    """(B, C, H, W) levels and (B, 8, 8) tables -> the levels after their DCT was quantized."""
    batch, channels, height, width = levels.shape
    transform, table = once("dct", _dct, levels.dtype, levels.device), table.to(levels)[:, None, None, None]
    blocks = levels.view(batch, channels, height // 8, 8, width // 8, 8).transpose(3, 4) - 128  # (B, C, H/8, W/8, 8, 8)
    quantized = (transform @ blocks @ transform.T / table).round() * table
    blocks = (transform.T @ quantized @ transform + 128).round().clamp(0, 255)
    return blocks.transpose(3, 4).reshape(levels.shape)


def _dct() -> Tensor:
    """The orthonormal cosine transform of 8 values: (8, 8)."""
    k = torch.arange(8, dtype=torch.float64)
    rows = torch.cos(math.pi * (2 * k + 1) * k[:, None] / 16) / 2
    rows[0] /= math.sqrt(2)
    return rows


def _convert(images: Tensor, matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    """Applies a colour matrix as explicit sums: the last bit of a matrix product may depend on the batch."""
    red, green, blue = images.split(1, 1)
    of_red, of_green, of_blue = numbers(sum(matrix, ()), images.dtype, images.device).view(3, 3, 1, 1).unbind(1)
    return of_red * red + of_green * green + of_blue * blue


def _enlarge(images: Tensor, axis: int) -> Tensor:
    """Doubles the size along one axis. A pixel is three quarters of the nearest value and one quarter of the next."""
    size = images.shape[axis]
    before = torch.cat([images.narrow(axis, 0, 1), images.narrow(axis, 0, size - 1)], axis)
    after = torch.cat([images.narrow(axis, 1, size - 1), images.narrow(axis, size - 1, 1)], axis)
    return torch.stack([0.75 * images + 0.25 * before, 0.75 * images + 0.25 * after], axis + 1).flatten(axis, axis + 1)
