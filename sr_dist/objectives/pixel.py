"""Training without a discriminator: content terms alone (SRCNN, SRResNet, RRDB-PSNR, the first stage of every GAN)."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from sr_dist.core.batch import Batch, Terms
from sr_dist.core.config import Settings
from sr_dist.core.contracts import Phase
from sr_dist.losses.content_terms import ContentTerms


class Config(Settings):
    content: dict[str, Any] = {"l1": 1.0}
    """Content terms with weights."""


class Objective(nn.Module):
    phases: tuple[Phase, ...] = ("generator",)
    validation: Literal["restoration"] = "restoration"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.content = ContentTerms(config.content)

    def forward(self, generator: nn.Module, batch: Batch) -> Tensor:
        return generator(batch.lr)

    def generator_loss(self, discriminator: None, batch: Batch, sr: Tensor) -> Terms:
        return self.content(sr, batch)
