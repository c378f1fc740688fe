"""Mean squared difference. On [-1, 1], as in SRGAN and SR-UGAN, it is four times the value on [0, 1]."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from sr_dist.core.batch import Batch
from sr_dist.core.config import Settings
from sr_dist.core.contracts import ContentTerm


class Config(Settings):
    range: Literal["0..1", "-1..1"] = "0..1"


def build(config: Config) -> ContentTerm:
    return MSE(4.0 if config.range == "-1..1" else 1.0)


class MSE(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, sr: Tensor, batch: Batch) -> Tensor:
        return self.factor * F.mse_loss(sr.float(), batch.hr.float())
