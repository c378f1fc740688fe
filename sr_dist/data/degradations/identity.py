"""LR is HR. For classifiers, which train at scale 1."""

from __future__ import annotations

from torch import Tensor

from sr_dist.core.config import Settings
from sr_dist.core.contracts import Degradation
from sr_dist.core.errors import UserError


class Config(Settings):
    pass


def build(config: Config, scale: int) -> Degradation:
    if scale != 1:
        raise UserError(f"data.degradation: 'identity' does not change the size, but the scale is {scale}; use it with scale 1")

    def degrade(hr: Tensor, seeds: Tensor) -> Tensor:
        return hr

    return degrade
