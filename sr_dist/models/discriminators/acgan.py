"""The SR-UGAN discriminator, an ACGAN: real or fake, and which class. Any input size, no normalization.

`form: author` is the author's public code: a convolution before the stages, a 1 x 1 convolution in every shortcut, and the
activation before the sum; 16,754,921 parameters for 1000 classes. `residual` is ours: no convolution before the stages, 1 x 1
only where the width changes, the activation after the sum; 16,447,273.
"""

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
    form: Literal["author", "residual"] = "residual"
    """author is the published network."""


def build(config: Config, scale: int) -> Discriminator:
    return ACGANDiscriminator(config)


class ACGANDiscriminator(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        published = config.form == "author"
        self.stem = nn.Conv2d(config.channels, config.widths[0], 3, padding=1) if published else None
        first = config.widths[0] if published else config.channels
        self.stages = nn.ModuleList(
            Stage(channels, width, published) for channels, width in zip([first, *config.widths], config.widths, strict=False)
        )
        self.conv = nn.Conv2d(config.widths[-1], config.features, 3, padding=1)
        self.dense = nn.Linear(config.features, config.features)
        self.validity = nn.Linear(config.features, 1)
        self.classes = nn.Linear(config.features, config.classes) if config.classes else None

    def forward(self, images: Tensor) -> DiscriminatorOutput:
        x = images * 2 - 1
        x = x if self.stem is None else F.leaky_relu(self.stem(x), 0.2)
        for stage in self.stages:
            x = stage(x)
        x = F.leaky_relu(self.conv(x), 0.2).mean((2, 3))  # (B, 1024)
        x = F.leaky_relu(self.dense(x), 0.2)
        return DiscriminatorOutput(self.validity(x).squeeze(1), self.classes(x) if self.classes is not None else None)


class Stage(nn.Module):
    """A residual block, then half the size, down to one pixel."""

    def __init__(self, channels: int, width: int, published: bool) -> None:
        super().__init__()
        self.published = published
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Identity() if channels == width and not published else nn.Conv2d(channels, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv2(F.leaky_relu(self.conv1(x), 0.2))
        x = self.skip(x) + F.leaky_relu(branch, 0.2) if self.published else F.leaky_relu(self.skip(x) + branch, 0.2)
        return F.avg_pool2d(x, (min(2, x.shape[2]), min(2, x.shape[3])))
