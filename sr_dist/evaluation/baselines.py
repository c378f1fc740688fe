"""Interpolation, the baselines that every network must beat."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from sr_dist.core.resize import imresize

Upscale = Callable[[Tensor], Tensor]  # (B, C, h, w) in [0, 1] -> (B, C, h scale, w scale)


def baseline(name: str, scale: int) -> Upscale:
    """`bicubic` is MATLAB's, which the published tables use."""
    if name == "bicubic":
        return lambda lr: imresize(lr.double(), scale).to(lr.dtype)
    if name == "bilinear":
        return lambda lr: F.interpolate(lr, scale_factor=scale, mode="bilinear", align_corners=False)
    assert name == "nearest", name
    return lambda lr: F.interpolate(lr, scale_factor=scale, mode="nearest")
