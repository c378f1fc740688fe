"""LR by a Gaussian filter and downsampling, as in SRGAN's slides, rounded to 8 bits.

    y(i) = sum_j w(i, j) x(j),  w(i, j) = exp(-(j - u(i))^2 / (2 sigma^2)), sums to one,  u(i) = (i + 1/2) scale - 1/2

per axis. u(i) is the centre of the HR pixels that LR pixel i covers, so LR is not shifted against HR. Pixels outside are
mirrored, edge included. The slides state no sigma; 1.6 HR pixels is the usual value, known as the BD degradation.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from sr_dist.core.config import Settings
from sr_dist.core.constants import once
from sr_dist.core.contracts import Degradation
from sr_dist.core.resize import full_precision, rounded


class Config(Settings):
    sigma: Annotated[float, Field(gt=0)] = 1.6
    """The standard deviation of the filter in HR pixels."""


def build(config: Config, scale: int) -> Degradation:
    def degrade(hr: Tensor, seeds: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H / scale, W / scale)"""
        rows, columns = (_matrix(size, scale, config.sigma, hr) for size in hr.shape[-2:])
        with full_precision(hr.device.type):
            return rounded(rows @ hr @ columns.T)

    return degrade


def _matrix(size: int, scale: int, sigma: float, like: Tensor) -> Tensor:
    """The (size / scale, size) matrix of one axis, on the images' device."""
    return once(("gaussian", size, scale, sigma), lambda: _new_matrix(size, scale, sigma), like.dtype, like.device)


def _new_matrix(size: int, scale: int, sigma: float) -> Tensor:
    """In float64."""
    out, reach = math.ceil(size / scale), math.ceil(4 * sigma)
    centre = (torch.arange(out, dtype=torch.float64) + 0.5) * scale - 0.5
    taps = torch.floor(centre)[:, None] + torch.arange(-reach, reach + 2, dtype=torch.float64)  # (out, taps)
    weights = torch.exp(-((taps - centre[:, None]) ** 2) / (2 * sigma**2))
    mirrored = taps.long().remainder(2 * size)
    inside = torch.where(mirrored < size, mirrored, 2 * size - 1 - mirrored)
    return torch.zeros(out, size, dtype=torch.float64).scatter_add_(1, inside, weights / weights.sum(1, keepdim=True))
