"""SRResNet, the generator of SRGAN: residual blocks with batch normalization and PReLU, then pixel shuffle.

With 16 blocks it has 1,549,462 parameters at x4: every PReLU has one slope. Input and output are in [0, 1]; the paper's
[-1, 1] for HR is the range of its MSE.

Tensors: conv_first, act_first; body.{i}.conv1, bn1, act, conv2, bn2; conv_body, bn_body (or act_body); upsample.{u}.conv, bn (if
any), act; conv_last.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sr_dist.core.config import Positive, Settings, Whole
from sr_dist.core.contracts import Generator
from sr_dist.core.errors import UserError

DOUBLINGS = {2: 1, 4: 2, 8: 3}


class Config(Settings):
    channels: Annotated[Literal[1, 3], Whole] = 3
    num_blocks: Positive = 16
    width: Positive = 64
    output: Literal["linear", "tanh"] = "linear"
    """tanh means (tanh + 1) / 2, as some published weights were trained."""
    trunk_end: Literal["batch_norm", "prelu"] = "batch_norm"
    """The layer after the trunk's last convolution; prelu is that of some published weights of 2017 and 2018."""
    upsample_norm: bool = False
    """Batch normalization after the convolutions that enlarge, as in the digits study's code."""


def build(config: Config, scale: int) -> Generator:
    if scale not in DOUBLINGS:
        raise UserError(f"scale: the generator 'srresnet' enlarges by 2, 4 or 8, not {scale}")
    return SRResNet(config, scale)


class SRResNet(nn.Module):
    def __init__(self, config: Config, scale: int) -> None:
        super().__init__()
        self.output, self.trunk_end = config.output, config.trunk_end
        width = config.width
        self.conv_first = nn.Conv2d(config.channels, width, 9, padding=4)
        self.act_first = nn.PReLU()
        self.body = nn.Sequential(*(Block(width) for _ in range(config.num_blocks)))
        self.conv_body = nn.Conv2d(width, width, 3, padding=1)
        if config.trunk_end == "prelu":
            self.act_body = nn.PReLU()
        else:
            self.bn_body = nn.BatchNorm2d(width)
        self.upsample = nn.Sequential(*(Double(width, config.upsample_norm) for _ in range(DOUBLINGS[scale])))
        self.conv_last = nn.Conv2d(width, config.channels, 9, padding=4)

    def forward(self, lr: Tensor) -> Tensor:
        """(B, C, h, w) in [0, 1] -> (B, C, h scale, w scale)."""
        shallow = self.act_first(self.conv_first(lr))  # (B, width, h, w)
        end = self.act_body if self.trunk_end == "prelu" else self.bn_body
        features = shallow + end(self.conv_body(self.body(shallow)))
        sr = self.conv_last(self.upsample(features))
        return (torch.tanh(sr) + 1) / 2 if self.output == "tanh" else sr


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.act = nn.PReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))


class Double(nn.Module):
    """Twice the size by pixel shuffle."""

    def __init__(self, width: int, normed: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 4 * width, 3, padding=1)
        self.bn = nn.BatchNorm2d(4 * width) if normed else nn.Identity()
        self.act = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(F.pixel_shuffle(self.bn(self.conv(x)), 2))
