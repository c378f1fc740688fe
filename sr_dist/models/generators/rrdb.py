"""RRDB, the generator of ESRGAN and Real-ESRGAN: residual in residual dense blocks, then nearest x2 and convolution.

    dense block   y_k = lrelu(W_k [x, y_1, ..., y_{k-1}]), k = 1..4;  x + 0.2 W_5 [x, y_1, ..., y_4]
    RRDB          x + 0.2 dense(dense(dense(x)))

No normalization. With 23 blocks it has 16,697,987 parameters at x4. x2 and x1 fold the image by 2 and 4 first (pixel
unshuffle) and then enlarge by 4. The convolutions of the dense blocks start at 0.1 x Kaiming, the six or seven others with
torch's defaults, as in the authors' code. (The paper scales all of them, and so do some peers.)

Tensors, as in BasicSR: conv_first; body.{i}.rdb{1..3}.conv{1..5}; conv_body; conv_up1, conv_up2 (conv_up3 at x8); conv_hr;
conv_last.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sr_dist.core.config import Positive, Settings, Whole
from sr_dist.core.contracts import Generator
from sr_dist.core.errors import UserError
from sr_dist.core.resize import imresize
from sr_dist.models import initialization

FOLD = {1: 4, 2: 2, 4: 1, 8: 1}
DOUBLINGS = {1: 0, 2: 1, 4: 2, 8: 3}  # without folding


class Config(Settings):
    channels: Annotated[Literal[1, 3], Whole] = 3
    num_blocks: Positive = 23
    width: Positive = 64
    growth: Positive = 32
    """Channels that each convolution of a dense block adds."""
    unshuffle: bool = True
    """x1 and x2 fold the image first; false enlarges less instead, as in the first ESRGAN code and BSRGAN."""
    skip: Literal["none", "bicubic"] = "none"
    """bicubic learns the difference from the bicubic image and trains in minutes; it is not in the paper."""


def build(config: Config, scale: int) -> Generator:
    if scale not in FOLD:
        raise UserError(f"scale: the generator 'rrdb' enlarges by 1, 2, 4 or 8, not {scale}")
    return RRDBNet(config, scale)


class RRDBNet(nn.Module):
    def __init__(self, config: Config, scale: int) -> None:
        super().__init__()
        self.scale, self.skip = scale, config.skip
        self.fold = FOLD[scale] if config.unshuffle else 1
        doublings = DOUBLINGS[scale * self.fold]
        width = config.width
        self.conv_first = nn.Conv2d(config.channels * self.fold**2, width, 3, padding=1)
        self.body = nn.Sequential(*(RRDB(width, config.growth) for _ in range(config.num_blocks)))
        self.conv_body = nn.Conv2d(width, width, 3, padding=1)
        self.ups = [f"conv_up{up + 1}" for up in range(doublings)]
        for name in self.ups:
            self.add_module(name, nn.Conv2d(width, width, 3, padding=1))
        self.conv_hr = nn.Conv2d(width, width, 3, padding=1)
        self.conv_last = nn.Conv2d(width, config.channels, 3, padding=1)
        initialization.kaiming(self.body.modules(), 0.1)

    def forward(self, lr: Tensor) -> Tensor:
        """(B, C, h, w) in [0, 1] -> (B, C, h scale, w scale)."""
        height, width = lr.shape[-2:]
        padded = F.pad(lr, (0, -width % self.fold, 0, -height % self.fold), mode="replicate")
        shallow = self.conv_first(F.pixel_unshuffle(padded, self.fold))  # (B, width, h / fold, w / fold)
        features = shallow + self.conv_body(self.body(shallow))
        for name in self.ups:
            features = F.leaky_relu(getattr(self, name)(F.interpolate(features, scale_factor=2, mode="nearest")), 0.2)
        sr = self.conv_last(F.leaky_relu(self.conv_hr(features), 0.2))
        sr = sr[..., : height * self.scale, : width * self.scale]
        return sr + imresize(lr, self.scale) if self.skip == "bicubic" else sr


class RRDB(nn.Module):
    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.rdb1 = DenseBlock(width, growth)
        self.rdb2 = DenseBlock(width, growth)
        self.rdb3 = DenseBlock(width, growth)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.2 * self.rdb3(self.rdb2(self.rdb1(x)))


class DenseBlock(nn.Module):
    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, growth, 3, padding=1)
        self.conv2 = nn.Conv2d(width + growth, growth, 3, padding=1)
        self.conv3 = nn.Conv2d(width + 2 * growth, growth, 3, padding=1)
        self.conv4 = nn.Conv2d(width + 3 * growth, growth, 3, padding=1)
        self.conv5 = nn.Conv2d(width + 4 * growth, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            features.append(F.leaky_relu(conv(torch.cat(features, 1)), 0.2))
        return x + 0.2 * self.conv5(torch.cat(features, 1))
