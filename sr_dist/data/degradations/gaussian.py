"""LR by a Gaussian filter, then down-sampling, as in SRGAN's slides; kept in 8 bits like a file would be.

    y(i) = sum_j w(i, j) x(j),  w(i, j) = exp(-(j - u(i))^2 / (2 sigma^2)), made to sum to one,  u(i) = (i + 1/2) scale - 1/2

per axis. The filter is sampled at the middle u(i) of the pixels that LR's pixel i covers, so that LR is not shifted against
HR; outside, the image is mirrored, edge included. The slides give no sigma: 1.6 pixels of HR is what peers call BD.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from sr_dist.core.config import Settings
from sr_dist.core.resize import rounded


class Config(Settings):
    sigma: Annotated[float, Field(gt=0)] = 1.6  # pixels of HR


def build(config: Config, scale: int) -> Callable[[Tensor, Tensor], Tensor]:
    def degrade(hr: Tensor, seeds: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H / scale, W / scale)."""
        rows, columns = (_matrix(size, scale, config.sigma).to(hr) for size in hr.shape[-2:])
        with torch.autocast(hr.device.type, enabled=False):  # 8 bits of a bf16 product are not 8 bits of an image
            return rounded(rows @ hr @ columns.T)

    return degrade


@lru_cache(maxsize=64)
def _matrix(size: int, scale: int, sigma: float) -> Tensor:
    """The (size / scale, size) matrix of one axis, in float64."""
    out, reach = math.ceil(size / scale), math.ceil(4 * sigma)
    middle = (torch.arange(out, dtype=torch.float64) + 0.5) * scale - 0.5
    taps = torch.floor(middle)[:, None] + torch.arange(-reach, reach + 2, dtype=torch.float64)  # (out, taps)
    weights = torch.exp(-((taps - middle[:, None]) ** 2) / (2 * sigma**2))
    mirrored = taps.long().remainder(2 * size)
    inside = torch.where(mirrored < size, mirrored, 2 * size - 1 - mirrored)
    return torch.zeros(out, size, dtype=torch.float64).scatter_add_(1, inside, weights / weights.sum(1, keepdim=True))
