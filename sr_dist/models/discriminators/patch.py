"""The discriminator of the digits study: four stages of a convolution and a strided one, then a logit for every patch.

Fully convolutional: no dense layer, no sigmoid, any input size. The receptive field of a logit is 93 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from sr_dist.core.batch import DiscriminatorOutput
from sr_dist.core.config import Positive, Settings, Whole
from sr_dist.core.contracts import Discriminator


class Config(Settings):
    channels: Annotated[Literal[1, 3], Whole] = 3
    widths: tuple[Positive, ...] = (64, 128, 256, 512)
    """Of the stages."""
    norm: Literal["batch", "none"] = "batch"
    """none makes an image's result independent of the other images of its batch."""


def build(config: Config, scale: int) -> Discriminator:
    return PatchDiscriminator(config)


class PatchDiscriminator(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.stages = stages(config.channels, config.widths, config.norm == "batch")
        self.logit = nn.Conv2d(config.widths[-1], 1, 3, padding=1)

    def forward(self, images: Tensor) -> DiscriminatorOutput:
        logits = self.logit(self.stages(images * 2 - 1))  # (B, 1, H / 16, W / 16)
        return DiscriminatorOutput(logits.squeeze(1), None)


def stages(channels: int, widths: Sequence[int], normed: bool) -> nn.Sequential:
    """SRGAN's convolutions: one per width, and one that halves the size. The first one is not normalized."""
    layers: list[nn.Module] = []
    for inside, width in zip([channels, *widths], widths, strict=False):
        layers += [Layer(inside, width, 1, normed and bool(layers)), Layer(width, width, 2, normed)]
    return nn.Sequential(*layers)


class Layer(nn.Module):
    def __init__(self, inside: int, width: int, stride: int, normed: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, width, 3, stride, padding=1)
        self.norm = nn.BatchNorm2d(width) if normed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x)), 0.2)
