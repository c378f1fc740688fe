"""SRVGGNetCompact, the small network of Real-ESRGAN: plain convolutions on LR and one pixel shuffle, added to the LR image that
is enlarged by nearest neighbour.

    realesr-general-x4v3     width 64, 32 convolutions   1,213,296 parameters
    realesr-animevideov3     width 64, 16 convolutions     621,424

Tensors, as in the authors' files: body.{i}, convolutions at even numbers and activations (PReLU) at odd ones.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from sr_dist.core.config import Positive, Settings, Whole
from sr_dist.core.contracts import Generator

SLOPE = 0.1  # of the leaky ReLU


class Config(Settings):
    channels: Annotated[Literal[1, 3], Whole] = 3
    width: Positive = 64
    num_blocks: Positive = 16
    """Convolutions between the first and the last."""
    activation: Literal["prelu", "relu", "leaky_relu"] = "prelu"


def build(config: Config, scale: int) -> Generator:
    return SRVGG(config, scale)


class SRVGG(nn.Module):
    def __init__(self, config: Config, scale: int) -> None:
        super().__init__()
        self.scale, width = scale, config.width
        layers: list[nn.Module] = [nn.Conv2d(config.channels, width, 3, padding=1), activation(config)]
        for _ in range(config.num_blocks):
            layers += [nn.Conv2d(width, width, 3, padding=1), activation(config)]
        layers.append(nn.Conv2d(width, config.channels * scale**2, 3, padding=1))
        self.body = nn.Sequential(*layers)

    def forward(self, lr: Tensor) -> Tensor:
        """(B, C, h, w) in [0, 1] -> (B, C, h scale, w scale)."""
        difference = F.pixel_shuffle(self.body(lr), self.scale)
        return difference + F.interpolate(lr, scale_factor=self.scale, mode="nearest")


def activation(config: Config) -> nn.Module:
    if config.activation == "prelu":
        return nn.PReLU(config.width)
    return nn.ReLU() if config.activation == "relu" else nn.LeakyReLU(SLOPE)
