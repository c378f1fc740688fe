"""The focal frequency loss (Jiang et al., ICCV 2021), on [0, 1]: frequencies that are hard to make count more.

    d(u, v) = |F_sr(u, v) - F_hr(u, v)|^2,  F the orthonormal 2D DFT of a channel
    w(u, v) = |F_sr - F_hr|^alpha / max over (u, v), without gradient
    loss = E[w d]

`patch_factor` cuts images into that many patches per side first. Equations 8 and 9 of the paper; the mean is also over channels,
as in the authors' code.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from sr_dist.core.batch import Batch
from sr_dist.core.config import Positive, Settings
from sr_dist.core.contracts import ContentTerm
from sr_dist.core.errors import UserError
from sr_dist.core.precision import without_autocast


class Config(Settings):
    alpha: Annotated[float, Field(ge=0)] = 1.0
    """The exponent of the weights; 0 weighs all frequencies alike."""
    patch_factor: Positive = 1
    """Patches per side of an image."""


def build(config: Config) -> ContentTerm:
    return FocalFrequency(config.alpha, config.patch_factor)


class FocalFrequency(nn.Module):
    def __init__(self, alpha: float, patch_factor: int) -> None:
        super().__init__()
        self.alpha, self.patch_factor = alpha, patch_factor

    def forward(self, sr: Tensor, batch: Batch) -> Tensor:
        with without_autocast(sr):
            difference = torch.fft.fft2(self._patches(sr.float() - batch.hr.float()), norm="ortho")
        squared = difference.real.square() + difference.imag.square()  # (B, P, C, h, w)
        weight = squared.detach() ** (self.alpha / 2)
        weight = weight / weight.amax((-2, -1), keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)  # equal images: 0
        return (weight * squared).mean()

    def _patches(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, P, C, h, w)"""
        count, (height, width) = self.patch_factor, images.shape[-2:]
        if height % count or width % count:
            key = "objective.content.focal_frequency.patch_factor"
            raise UserError(f"{key}: {count} does not divide images of {width} x {height} (data.crop)")
        rows = images.unflatten(-1, (count, width // count)).unflatten(-3, (count, height // count))  # (B, C, P, h, P, w)
        return rows.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
