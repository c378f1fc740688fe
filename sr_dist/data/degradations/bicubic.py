"""LR by MATLAB's antialiased bicubic, rounded to 8 bits: the LR of the published SR tables."""

from __future__ import annotations

from torch import Tensor

from sr_dist.core.config import Settings
from sr_dist.core.contracts import Degradation
from sr_dist.core.resize import imresize


class Config(Settings):
    pass


def build(config: Config, scale: int) -> Degradation:
    def degrade(hr: Tensor, seeds: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H / scale, W / scale)"""
        return imresize(hr, 1 / scale, to_8_bit=True)

    return degrade
