"""MSRResNet: SRResNet without batch normalization. It learns the difference from the bilinear image.

The version that ESRGAN's authors published: ReLU inside the blocks, LeakyReLU 0.1 outside, no long skip, every
convolution initialized at 0.1 x Kaiming. With 16 blocks it has 1,517,571 parameters at x4.

Tensors, as in BasicSR: conv_first; body.{i}.conv1, conv2; upconv1, upconv2 (x4 only); conv_hr; conv_last.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from sr_dist.core.config import Positive, Settings, Whole
from sr_dist.core.contracts import Generator
from sr_dist.core.errors import UserError
from sr_dist.models import initialization

STEPS = {2: (2,), 3: (3,), 4: (2, 2)}  # the factors of the pixel shuffles


class Config(Settings):
    channels: Annotated[Literal[1, 3], Whole] = 3
    num_blocks: Positive = 16
    width: Positive = 64
    shuffle_activation: bool = True
    """LeakyReLU after each pixel shuffle; MMagic has none."""


def build(config: Config, scale: int) -> Generator:
    if scale not in STEPS:
        raise UserError(f"scale: the generator 'msrresnet' enlarges by 2, 3 or 4, not {scale}")
    return MSRResNet(config, scale)


class MSRResNet(nn.Module):
    def __init__(self, config: Config, scale: int) -> None:
        super().__init__()
        self.scale, self.steps = scale, STEPS[scale]
        self.slope = 0.1 if config.shuffle_activation else 1.0
        width = config.width
        self.conv_first = nn.Conv2d(config.channels, width, 3, padding=1)
        self.body = nn.Sequential(*(Block(width) for _ in range(config.num_blocks)))
        self.upconv1 = nn.Conv2d(width, width * self.steps[0] ** 2, 3, padding=1)
        if scale == 4:
            self.upconv2 = nn.Conv2d(width, width * 4, 3, padding=1)
        self.conv_hr = nn.Conv2d(width, width, 3, padding=1)
        self.conv_last = nn.Conv2d(width, config.channels, 3, padding=1)
        initialization.kaiming(self.modules(), 0.1)

    def forward(self, lr: Tensor) -> Tensor:
        """(B, C, h, w) in [0, 1] -> (B, C, h scale, w scale)."""
        features = self.body(F.leaky_relu(self.conv_first(lr), 0.1))  # (B, width, h, w)
        features = F.leaky_relu(F.pixel_shuffle(self.upconv1(features), self.steps[0]), self.slope)
        if self.scale == 4:
            features = F.leaky_relu(F.pixel_shuffle(self.upconv2(features), 2), self.slope)
        difference = self.conv_last(F.leaky_relu(self.conv_hr(features), 0.1))
        return F.interpolate(lr, scale_factor=self.scale, mode="bilinear", align_corners=False) + difference


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))
