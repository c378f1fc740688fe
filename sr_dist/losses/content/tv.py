"""Total variation of sr alone, on [0, 1]: E|x[i+1, j] - x[i, j]| + E|x[i, j+1] - x[i, j]|. It does not depend on hr."""

from __future__ import annotations

from torch import Tensor, nn

from sr_dist.core.batch import Batch
from sr_dist.core.config import Settings
from sr_dist.core.contracts import ContentTerm


class Config(Settings):
    pass


def build(config: Config) -> ContentTerm:
    return TotalVariation()


class TotalVariation(nn.Module):
    def forward(self, sr: Tensor, batch: Batch) -> Tensor:
        down, across = sr.float().diff(dim=-2).abs(), sr.float().diff(dim=-1).abs()
        return down.sum() / max(down.numel(), 1) + across.sum() / max(across.numel(), 1)
