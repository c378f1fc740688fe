"""LDL, locally discriminative learning (Liang et al., CVPR 2022, "Details or Artifacts"), on [0, 1].

    r = sum over channels of |hr - sr|,  r_ema the same of the averaged generator (EMA)
    m = var(r in the image)^(1/5) var(r in a window of 7 x 7 pixels)  where r >= r_ema, else 0
    loss = E[m |hr - sr|]

Artifacts are where neighbouring pixels are wrong by unlike amounts, and where the average, which has fewer, is right. Variances
are unbiased, and borders of windows are reflected. The gradient also passes through m, as in the authors' code. There it is not
a number for an image whose r is the same everywhere; here it is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sr_dist.core.batch import Batch
from sr_dist.core.config import Settings
from sr_dist.core.contracts import ContentTerm
from sr_dist.core.precision import without_autocast

WINDOW = 7
reads_average = True


class Config(Settings):
    pass


def build(config: Config) -> ContentTerm:
    return LDL()


class LDL(nn.Module):
    def forward(self, sr: Tensor, batch: Batch) -> Tensor:
        assert batch.average is not None
        with without_autocast(sr):
            difference = (batch.hr.float() - sr.float()).abs()
            residual = difference.sum(1, keepdim=True)  # (B, 1, H, W)
            average = (batch.hr.float() - batch.average.float()).abs().sum(1, keepdim=True)
            tiny = torch.finfo(residual.dtype).tiny
            weight = residual.var((1, 2, 3), keepdim=True).clamp(min=tiny) ** 0.2 * local_variance(residual)
            return (torch.where(residual < average, 0.0, weight) * difference).mean()


def local_variance(values: Tensor) -> Tensor:
    """(B, 1, H, W) -> the unbiased variance of the window around each pixel."""
    centred = values - values.detach().mean((-2, -1), keepdim=True)  # so that E[x^2] - E[x]^2 loses few digits
    padded = functional.pad(centred, [WINDOW // 2] * 4, mode="reflect")
    mean, square = (functional.avg_pool2d(x, WINDOW, stride=1) for x in (padded, padded.square()))
    return (square - mean.square()).clamp(min=0) * (WINDOW**2 / (WINDOW**2 - 1))
