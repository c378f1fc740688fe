"""The SR-UGAN discriminator, an ACGAN: real or fake, and which class. Any input size, no normalization."""

from __future__ import annotations

from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sr_dist.core.batch import DiscriminatorOutput
from sr_dist.core.config import Absent, Positive, Settings, Whole
from sr_dist.core.contracts import Discriminator


class Config(Settings):
    channels: Annotated[Literal[1, 3], Whole] = 3
    classes: Annotated[Positive | None, Absent] = None
    """The number of classes; in a recipe also `manifest`, the number that the shards have."""
    widths: Annotated[tuple[Positive, ...], Field(min_length=1)] = (64, 64, 128, 256, 512, 512)
    """Of the residual stages."""
    features: Positive = 1024


def build(config: Config, scale: int) -> Discriminator:
    return ACGANDiscriminator(config)


class ACGANDiscriminator(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            Stage(channels, width) for channels, width in zip([config.channels, *config.widths], config.widths, strict=False)
        )
        self.conv = nn.Conv2d(config.widths[-1], config.features, 3, padding=1)
        self.dense = nn.Linear(config.features, config.features)
        self.validity = nn.Linear(config.features, 1)
        self.classes = nn.Linear(config.features, config.classes) if config.classes else None

    def forward(self, images: Tensor) -> DiscriminatorOutput:
        x = images * 2 - 1
        for stage in self.stages:
            x = stage(x)
        x = F.leaky_relu(self.conv(x), 0.2).mean((2, 3))  # (B, 1024)
        x = F.leaky_relu(self.dense(x), 0.2)
        return DiscriminatorOutput(self.validity(x).squeeze(1), self.classes(x) if self.classes is not None else None)


class Stage(nn.Module):
    """A residual block, then half the size, down to one pixel."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Identity() if channels == width else nn.Conv2d(channels, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.skip(x) + self.conv2(F.leaky_relu(self.conv1(x), 0.2)), 0.2)
        return F.avg_pool2d(x, (min(2, x.shape[2]), min(2, x.shape[3])))
