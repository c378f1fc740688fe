"""MATLAB's `imresize(image, scale, 'bicubic')` with antialiasing, on tensors: the resizer of the published SR tables.

Per axis, with scale s = out / in and the cubic kernel k (a = -1/2), widened to k(s x) s when shrinking:

    u(i) = (i + 1/2) / s - 1/2                      the place of output pixel i on the input's grid
    y(i) = sum_j w(i, j) x(j),  w(i, j) = k(u(i) - j), made to sum to one; pixels outside are mirrored, edge included

It differs from PIL's and torch's bicubic at the borders, where those renormalise instead of mirroring. MATLAB before 2015
repeated the edge instead; Set5 as it is usually shared was made so: `border="replicate"`. For 8-bit images MATLAB works down
the columns first and rounds between the two passes; so does `to_8_bit`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

Border = Literal["mirror", "replicate"]


def imresize(images: Tensor, scale: float, *, to_8_bit: bool = False, border: Border = "mirror") -> Tensor:
    """(..., H, W) -> (..., ceil(H scale), ceil(W scale)); `to_8_bit` rounds and clips as MATLAB does for uint8 images."""
    if torch.compiler.is_exporting() and scale >= 1 and scale == int(scale) and not to_8_bit and border == "mirror":
        return _enlarged(_enlarged(images, int(scale)).mT, int(scale)).mT
    rows = _matrix(images.shape[-2], math.ceil(images.shape[-2] * scale), scale, border).to(images)
    columns = _matrix(images.shape[-1], math.ceil(images.shape[-1] * scale), scale, border).to(images).T
    device = "cpu" if images.is_meta else images.device.type  # shapes alone: there is no such autocast
    with torch.autocast(device, enabled=False):  # 8 bits of a bf16 product are not 8 bits of an image
        if not to_8_bit:
            return rows @ images @ columns
        # In levels, not in 255ths: an exact half must stay one, for halves go up.
        return _levels(_levels(rows @ (images * 255).round()) @ columns) / 255


def rounded(images: Tensor) -> Tensor:
    """Float images in [0, 1] as an 8-bit file would keep them."""
    return _levels(images * 255) / 255


def _levels(values: Tensor) -> Tensor:
    return (values + 0.5).floor().clamp(0, 255)


def cubic(x: Tensor) -> Tensor:
    x = x.abs()
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return torch.where(x <= 1, near, torch.where(x <= 2, far, torch.zeros_like(x)))


@lru_cache(maxsize=64)
def _matrix(size: int, out: int, scale: float, border: Border) -> Tensor:
    """The (out, size) matrix of one axis, in float64."""
    stretch = min(scale, 1.0)  # antialiasing: the kernel widens with the shrinking
    reach = 4 / stretch
    place = (torch.arange(out, dtype=torch.float64) + 0.5) / scale - 0.5
    first = torch.floor(place - reach / 2)
    taps = first[:, None] + torch.arange(math.ceil(reach) + 2, dtype=torch.float64)  # (out, taps)
    weights = cubic((place[:, None] - taps) * stretch)
    weights = weights / weights.sum(1, keepdim=True)
    if border == "replicate":
        inside = taps.long().clamp(0, size - 1)
    else:
        mirrored = taps.long().remainder(2 * size)
        inside = torch.where(mirrored < size, mirrored, 2 * size - 1 - mirrored)
    return torch.zeros(out, size, dtype=torch.float64).scatter_add_(1, inside, weights)


def _enlarged(images: Tensor, scale: int) -> Tensor:
    """Enlarges the last axis by a whole number, in operations that graphs for images of any size are made of.

    An output pixel looks at two neighbours on either side of the pixel that it lies in, with weights that repeat.
    """
    size = images.shape[-1]
    place = (torch.arange(scale, dtype=torch.float64) + 0.5) / scale - 0.5
    weights = cubic(place[:, None] - torch.arange(-2, 3))  # (scale, 5)
    around = torch.arange(-2, size + 2, device=images.device)
    around = torch.where(around < 0, -1 - around, around)
    mirrored = images[..., torch.minimum(around, 2 * size - 1 - around).clamp(min=0)]  # (..., size + 4)
    taps = torch.stack([mirrored[..., tap : tap + size] for tap in range(5)], -1)  # (..., size, 5)
    return (taps @ weights.to(images).T).flatten(-2)
