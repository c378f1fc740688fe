"""The SR-UGAN critic, an ACGAN: is the image real, and which class does it show? Any input size, no normalisation."""

from __future__ import annotations

from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sr_dist.core.batch import DiscriminatorOutput
from sr_dist.core.config import Absent, Settings, Whole

Positive = Annotated[int, Field(gt=0)]


class Config(Settings):
    channels: Annotated[Literal[1, 3], Whole] = 3
    classes: Annotated[Positive | None, Absent] = None  # in a recipe also `manifest`: as many as the shards have
    widths: Annotated[tuple[Positive, ...], Field(min_length=1)] = (64, 64, 128, 256, 512, 512)  # of the residual stages
    features: Positive = 1024


def build(config: Config, scale: int) -> nn.Module:
    return ACGANCritic(config)


class ACGANCritic(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            Stage(inside, width) for inside, width in zip([config.channels, *config.widths], config.widths, strict=False)
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
    """A residual block, then half the size (until one pixel is left)."""

    def __init__(self, inside: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Identity() if inside == width else nn.Conv2d(inside, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.skip(x) + self.conv2(F.leaky_relu(self.conv1(x), 0.2)), 0.2)
        return F.avg_pool2d(x, (min(2, x.shape[2]), min(2, x.shape[3])))
