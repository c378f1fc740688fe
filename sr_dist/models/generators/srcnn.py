"""SRCNN: three convolutions on the bicubic image.

    F(x) = W3 * max(0, W2 * max(0, W1 * y)),  y = bicubic(x)

9-64, 5-32, 5-C; the paper's first form has 1-32 in the middle (`kernels: [9, 1, 5]`). Edges are padded with zeros, as in
peers' code, so that the image keeps its size. Tensors: conv1, conv2, conv3.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from sr_dist.core.config import Positive, Settings, Whole
from sr_dist.core.contracts import Generator
from sr_dist.core.errors import UserError
from sr_dist.core.resize import imresize


class Config(Settings):
    channels: Annotated[Literal[1, 3], Whole] = 3
    widths: tuple[Positive, Positive] = (64, 32)
    kernels: tuple[Positive, Positive, Positive] = (9, 5, 5)
    skip: Literal["none", "bicubic"] = "none"
    """bicubic learns the difference from the bicubic image and trains in minutes; it is not in the paper."""


def build(config: Config, scale: int) -> Generator:
    if any(kernel % 2 == 0 for kernel in config.kernels):
        raise UserError(f"generator.kernels: {list(config.kernels)}: kernels have odd sizes, such as [9, 5, 5]")
    return SRCNN(config, scale)


class SRCNN(nn.Module):
    def __init__(self, config: Config, scale: int) -> None:
        super().__init__()
        self.scale, self.skip = scale, config.skip
        (first, second), (a, b, c) = config.widths, config.kernels
        self.conv1 = nn.Conv2d(config.channels, first, a, padding=a // 2)
        self.conv2 = nn.Conv2d(first, second, b, padding=b // 2)
        self.conv3 = nn.Conv2d(second, config.channels, c, padding=c // 2)

    def forward(self, lr: Tensor) -> Tensor:
        """(B, C, h, w) in [0, 1] -> (B, C, h scale, w scale)."""
        enlarged = imresize(lr, self.scale)
        output = self.conv3(F.relu(self.conv2(F.relu(self.conv1(enlarged)))))
        return enlarged + output if self.skip == "bicubic" else output
