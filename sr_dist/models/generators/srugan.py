"""The SR-UGAN generator: a U-Net at low resolution for context, dense blocks for detail, then pixel shuffle.

No normalization; any input size. There are three forms:

    author      his public code: SiLU after every convolution but those of the skips, attention and output, 2B dense blocks at the
                default width; 10,070,373 parameters at x2
    paper       the same, but B dense blocks at twice the width, then B at the default width, as the text says; 15,380,325
    residual    ours: the paper's dense blocks, but they grow by half a width and a convolution narrows; residual branches end
                without an activation, so that training begins near the identity; no SiLU after the head and before pixel
                shuffles, but after those of the output; attention at the deepest level too; 11,369,199
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sr_dist.core.config import Positive, Settings, Whole
from sr_dist.core.contracts import Generator
from sr_dist.core.errors import UserError
from sr_dist.core.resize import imresize


class Config(Settings):
    channels: Annotated[Literal[1, 3], Whole] = 3
    widths: Annotated[tuple[Positive, ...], Field(min_length=1)] = (64, 96, 128, 256)
    """Of the encoder's levels, finest first."""
    num_blocks: Positive = 2
    """Residual blocks per level."""
    num_dense_blocks: Positive = 8
    """Dense blocks per width."""
    reduction: Positive = 8
    """Of the channel attention."""
    form: Literal["author", "paper", "residual"] = "residual"
    """author and paper are the published networks; residual is ours."""
    skip: Literal["none", "bicubic"] = "none"
    """bicubic learns the difference from the bicubic image and trains in minutes; it is not in the paper."""


def build(config: Config, scale: int) -> Generator:
    if scale not in (2, 4):
        raise UserError(f"scale: the generator 'srugan' enlarges by 2 or 4, not {scale}")
    return SRUGenerator(config, scale)


class SRUGenerator(nn.Module):
    def __init__(self, config: Config, scale: int) -> None:
        super().__init__()
        self.scale, self.skip = scale, config.skip
        published = config.form != "residual"
        self.act = act_of(published)
        finest, *coarser = config.widths
        self.head = nn.Conv2d(config.channels, finest, 7, padding=3)
        self.encoder = nn.ModuleList()
        for inside, width in zip([finest, *config.widths], config.widths, strict=False):
            level = residual_blocks(inside, width, config.num_blocks, published)
            if not (published and len(self.encoder) == len(coarser)):
                level.append(Attention(width, config))
            self.encoder.append(nn.Sequential(*level))
        self.decoder = nn.ModuleList()
        inside = config.widths[-1]
        for width in reversed(config.widths[:-1]):
            last = len(self.decoder) == len(coarser) - 1
            self.decoder.append(Up(inside, width, 0 if last else config.num_blocks, config))
            inside = 2 * width if last else width
        wide, default = (0, 2) if config.form == "author" else (1, 1)  # times num_dense_blocks
        self.dense_wide = nn.Sequential(*(DenseBlock(inside, inside, published) for _ in range(wide * config.num_dense_blocks)))
        self.narrow = nn.Identity() if published else nn.Conv2d(inside, finest, 3, padding=1)
        inside = inside if published else finest  # the first published block at the default width narrows
        widths = [inside, *[finest] * (default * config.num_dense_blocks - 1)]
        self.dense = nn.Sequential(*(DenseBlock(width, finest, published) for width in widths))
        enlarge: list[nn.Module] = []
        for _ in range({2: 1, 4: 2}[scale]):
            enlarge += [nn.Conv2d(finest, 4 * finest, 3, padding=1), *([nn.SiLU()] if published else [])]
            enlarge += [Attention(4 * finest, config), nn.PixelShuffle(2)]
            enlarge += [] if published else [nn.SiLU()]  # without an activation, training stops at the quality of a linear filter
        self.enlarge = nn.Sequential(*enlarge)
        self.tail = nn.Conv2d(finest, config.channels, 7, padding=3)
        initialize_as_keras(self) if published else initialize(self)
        if self.skip == "bicubic":
            nn.init.zeros_(self.tail.weight)  # training starts from the bicubic image
            assert self.tail.bias is not None
            nn.init.zeros_(self.tail.bias)

    def forward(self, lr: Tensor) -> Tensor:
        """(B, C, h, w) in [0, 1] -> (B, C, h scale, w scale)."""
        height, width = lr.shape[-2:]
        grain = 2 ** len(self.decoder)  # every level halves the size; reflection fails at one pixel, so replicate
        padded = F.pad(lr, (0, -width % grain, 0, -height % grain), mode="replicate")
        features = self.act(self.head(padded))  # (B, 64, h, w)
        levels: list[Tensor] = []
        for level in self.encoder:
            features = level(F.max_pool2d(features, 2) if levels else features)
            levels.append(features)  # (B, widths[i], h / 2^i, w / 2^i)
        for up, finer in zip(self.decoder, reversed(levels[:-1]), strict=True):
            features = up(features, finer)
        features = self.dense(self.narrow(self.dense_wide(features)))  # (B, 64, h, w)
        residual = self.tail(self.enlarge(features))[..., : height * self.scale, : width * self.scale]
        if self.skip == "bicubic":
            return imresize(lr, self.scale) + residual
        return (torch.tanh(residual) + 1) / 2


def act_of(published: bool) -> nn.Module:
    """After a convolution that ends a branch or a level."""
    return nn.SiLU() if published else nn.Identity()


def initialize_as_keras(network: nn.Module) -> None:
    """Glorot uniform and no biases, the defaults of the author's framework."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def initialize(network: nn.Module) -> None:
    """Kaiming normal, residual branches times 0.1, attention nearly open. The paper states no initialization.

    With torch's default the signal fades through a dozen sigmoids, and nothing is learned in the first thousand steps.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, ResidualBlock):
                module.conv2.weight *= 0.1
            elif isinstance(module, DenseBlock):
                module.conv3.weight *= 0.1
            elif isinstance(module, Attention):
                for gate, openness in ((module.excite, 1.0), (module.space, 2.0)):  # excite counts twice: sigmoid(2) = 0.88
                    assert gate.bias is not None
                    nn.init.zeros_(gate.weight)
                    nn.init.constant_(gate.bias, openness)


class ResidualBlock(nn.Module):
    """No activation after the addition: SiLU halves small values, and a dozen in a row would erase the skip connections."""

    def __init__(self, inside: int, width: int, published: bool) -> None:
        super().__init__()
        self.act = act_of(published)
        self.conv1 = nn.Conv2d(inside, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Identity() if inside == width else nn.Conv2d(inside, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.act(self.conv2(F.silu(self.conv1(x))))


def residual_blocks(inside: int, width: int, count: int, published: bool) -> list[nn.Module]:
    return [ResidualBlock(inside if i == 0 else width, width, published) for i in range(count)]


class Attention(nn.Module):
    """Channel attention (one two-layer network on the average and the maximum), then spatial attention."""

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        inside = max(width // config.reduction, 1)
        self.squeeze = nn.Conv2d(width, inside, 1)
        self.excite = nn.Conv2d(inside, width, 1)
        self.space = nn.Conv2d(2, 1, 7, padding=3, bias=config.form == "residual")

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)  # (B, width, 1, 1) each
        x = x * torch.sigmoid(sum(self.excite(F.silu(self.squeeze(p))) for p in pooled))
        pooled_channels = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)  # (B, 2, h, w)
        return x * torch.sigmoid(self.space(pooled_channels))


class Up(nn.Module):
    """Convolution to four times the width, attention, pixel shuffle, concatenation with the encoder's level, residual blocks."""

    def __init__(self, inside: int, width: int, count: int, config: Config) -> None:
        super().__init__()
        published = config.form != "residual"
        self.act = act_of(published)
        self.conv = nn.Conv2d(inside, 4 * width, 3, padding=1)
        self.attention = Attention(4 * width, config)
        self.blocks = nn.Sequential(*residual_blocks(2 * width, width, count, published))

    def forward(self, x: Tensor, finer: Tensor) -> Tensor:
        x = F.pixel_shuffle(self.attention(self.act(self.conv(x))), 2)  # (B, width, 2h, 2w)
        return self.blocks(torch.cat([x, finer], 1))


class DenseBlock(nn.Module):
    """Three densely connected convolutions that learn a residual."""

    def __init__(self, inside: int, width: int, published: bool) -> None:
        super().__init__()
        self.act = act_of(published)
        growth = width if published else width // 2
        self.skip = nn.Identity() if inside == width else nn.Conv2d(inside, width, 1)
        self.conv1 = nn.Conv2d(inside, growth, 3, padding=1)
        self.conv2 = nn.Conv2d(width + growth, growth, 3, padding=1)
        self.conv3 = nn.Conv2d(width + 2 * growth, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.skip(x)
        first = F.silu(self.conv1(x))
        second = F.silu(self.conv2(torch.cat([skip, first], 1)))
        return skip + self.act(self.conv3(torch.cat([skip, first, second], 1)))
