"""Mean absolute difference, on [0, 1]."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sr_dist.core.batch import Batch
from sr_dist.core.config import Settings
from sr_dist.core.contracts import ContentTerm


class Config(Settings):
    pass


def build(config: Config) -> ContentTerm:
    return L1()


class L1(nn.Module):
    def forward(self, sr: Tensor, batch: Batch) -> Tensor:
        return F.l1_loss(sr.float(), batch.hr.float())
