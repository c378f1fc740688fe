"""LR is HR: at scale 1, for classifiers."""

from __future__ import annotations

from torch import Tensor

from sr_dist.core.config import Settings
from sr_dist.core.errors import UserError


class Config(Settings):
    pass


def build(config: Config, scale: int):
    if scale != 1:
        raise UserError(f"data.degradation: 'identity' changes no size, but the scale is {scale}; it goes with scale 1")

    def degrade(hr: Tensor, seeds: Tensor) -> Tensor:
        return hr

    return degrade
