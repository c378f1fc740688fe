"""Real-ESRGAN's unsharp masking of HR images. I is the image, B a Gaussian filter, S the mask of edges:

    sharp = clip(I + (I - B I) / 2, 0, 1);  S = B [255 |I - B I| > 10];  result = S sharp + (1 - S) I

B has 51 taps per axis and the standard deviation 8, which OpenCV derives from that size: 0.3 (25 - 1) + 0.8. Pixels outside are
mirrored, the edge not repeated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sr_dist.core.constants import once
from sr_dist.core.resize import full_precision

REACH, SIGMA = 25, 8.0  # of the filter, in pixels
AMOUNT, THRESHOLD = 0.5, 10.0  # the share of the difference that is added; levels of 255


def sharpened(images: Tensor) -> Tensor:
    """(B, C, H, W) in [0, 1] -> the same, with stronger edges."""
    with full_precision("cpu" if images.is_meta else images.device.type):
        difference = images - blurred(images)
        mask = blurred((difference.abs() * 255 > THRESHOLD).to(images.dtype))
        return mask * (images + AMOUNT * difference).clamp(0, 1) + (1 - mask) * images


def blurred(images: Tensor) -> Tensor:
    rows, columns = (_matrix(size, images) for size in images.shape[-2:])
    return rows @ images @ columns.T


def _matrix(size: int, like: Tensor) -> Tensor:
    """The (size, size) matrix of one axis, on the images' device."""
    return once(("sharpen", size), lambda: _new_matrix(size), like.dtype, like.device)


def _new_matrix(size: int) -> Tensor:
    """In float64."""
    taps = torch.arange(-REACH, REACH + 1, dtype=torch.float64)
    weights = torch.exp(-(taps**2) / (2 * SIGMA**2))
    period = max(2 * (size - 1), 1)
    place = (torch.arange(size)[:, None] + taps.long()).remainder(period)
    inside = torch.where(place < size, place, period - place)
    return torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, inside, (weights / weights.sum()).expand(size, -1))
