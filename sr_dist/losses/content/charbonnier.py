"""E[sqrt((sr - hr)^2 + eps^2)], on [0, 1]: a smooth mean absolute difference. It is eps for equal images."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from sr_dist.core.batch import Batch
from sr_dist.core.config import Settings
from sr_dist.core.contracts import ContentTerm


class Config(Settings):
    eps: Annotated[float, Field(gt=0)] = 1e-3


def build(config: Config) -> ContentTerm:
    return Charbonnier(config.eps)


class Charbonnier(nn.Module):
    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, sr: Tensor, batch: Batch) -> Tensor:
        return ((sr.float() - batch.hr.float()).square() + self.eps**2).sqrt().mean()
