"""LR as the published tables make it: MATLAB's antialiased bicubic, kept in 8 bits like a file would be."""

from __future__ import annotations

from torch import Tensor

from sr_dist.core.config import Settings
from sr_dist.core.resize import imresize


class Config(Settings):
    pass


def build(config: Config, scale: int):
    def degrade(hr: Tensor, seeds: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H / scale, W / scale)."""
        return imresize(hr, 1 / scale, to_8_bit=True)

    return degrade
