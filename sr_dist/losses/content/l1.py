"""Mean absolute difference, on [0, 1]."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sr_dist.core.batch import Batch
from sr_dist.core.config import Settings


class Config(Settings):
    pass


def build(config: Config) -> nn.Module:
    return L1()


class L1(nn.Module):
    def forward(self, sr: Tensor, batch: Batch) -> Tensor:
        return F.l1_loss(sr.float(), batch.hr.float())
