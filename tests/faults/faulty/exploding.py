"""An objective whose images are not finite in the steps that it is told."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from sr_dist.core.config import Settings


class Config(Settings):
    content: dict[str, Any] = {}
    steps: tuple[int, ...] = ()


class Objective(nn.Module):
    phases = ("generator",)
    validation: Literal["restoration"] = "restoration"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.steps = {int(step) for step in config.steps}

    def forward(self, generator, batch):
        return generator(batch.lr * (float("nan") if batch.step in self.steps else 1))

    def generator_loss(self, discriminator, batch, sr):
        return {"l1": torch.abs(sr - batch.hr).mean()}
