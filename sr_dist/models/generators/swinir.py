"""SwinIR (Liang et al. 2021): attention inside windows of pixels, shifted by half a window in every second block.

    SwinIR-M       width 180, 6 groups of 6 blocks, 6 heads, window 8, enlarge: shuffle    11,900,199 parameters at x4
    lightweight    width 60, 4 groups of 6 blocks, 6 heads, window 8, enlarge: direct         929,628 (the paper: 897 thousand)

The paper counts without the tables of positions, 32,400 parameters of the lightweight network.

Beside the paper: `positions: rotary` turns queries and keys by their place in the window instead of adding a learned bias to the
scores, and `tokens: features` cuts the tokens from the features of a small convolutional network instead of one convolution.

Tensors: conv_first, stem, embed_norm; layers.{i}.blocks.{j}.norm1, attention.(qkv, project, bias), norm2, mlp.(0, 2);
layers.{i}.conv; norm; conv_body; enlarge.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sr_dist.core.config import Positive, Settings, Whole
from sr_dist.core.contracts import Generator
from sr_dist.core.errors import UserError
from sr_dist.core.resize import imresize

MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K's training images; subtracted before the network and added after it
FACTORS = {2: (2,), 3: (3,), 4: (2, 2), 8: (2, 2, 2)}  # of the pixel shuffles
BASE = 100.0  # of the rotary frequencies: the windows are a few pixels wide


class Config(Settings):
    channels: Annotated[Literal[1, 3], Whole] = 3
    width: Positive = 180
    depths: Annotated[tuple[Positive, ...], Field(min_length=1)] = (6, 6, 6, 6, 6, 6)
    """Blocks in each group."""
    heads: Positive = 6
    window: Annotated[int, Field(ge=2)] = 8
    """The side of a window in LR pixels."""
    mlp_ratio: Annotated[float, Field(gt=0)] = 2.0
    enlarge: Literal["shuffle", "direct", "nearest"] = "shuffle"
    """shuffle: convolutions and pixel shuffles; direct: one pixel shuffle (lightweight); nearest: for real images."""
    group_end: Literal["1conv", "3conv"] = "1conv"
    """The convolutions after a group; 3conv is that of the large network for real images."""
    positions: Literal["bias", "rotary"] = "bias"
    """How attention knows where a pixel is in its window."""
    tokens: Literal["pixels", "features"] = "pixels"
    """What the tokens are cut from: pixels after one convolution, or the features of a small convolutional network."""
    skip: Literal["none", "bicubic"] = "none"
    """bicubic learns the difference from the bicubic image and trains in minutes; it is not in the paper."""


def build(config: Config, scale: int) -> Generator:
    if scale not in FACTORS:
        raise UserError(f"scale: the generator 'swinir' enlarges by 2, 3, 4 or 8, not {scale}")
    if config.enlarge == "nearest" and scale not in (2, 4):
        raise UserError(f"scale: with enlarge: nearest, the generator 'swinir' enlarges by 2 or 4, not {scale}")
    if config.width % config.heads:
        raise UserError(f"generator.heads: {config.heads} heads do not divide a width of {config.width}")
    if config.positions == "rotary" and config.width // config.heads < 4:
        raise UserError(f"generator.heads: rotary positions need 4 channels in a head; here are {config.width // config.heads}")
    return SwinIR(config, scale)


class SwinIR(nn.Module):
    mean: Tensor

    def __init__(self, config: Config, scale: int) -> None:
        super().__init__()
        self.scale, self.skip, self.window, width = scale, config.skip, config.window, config.width
        mean = MEAN if config.channels == 3 else (0.0,)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(config.channels, width, 3, padding=1)
        features = config.tokens == "features"
        self.stem = nn.Sequential(ResidualBlock(width), ResidualBlock(width)) if features else nn.Identity()
        self.embed = nn.Linear(width, width) if features else nn.Identity()
        self.embed_norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(Group(depth, config) for depth in config.depths)
        self.norm = nn.LayerNorm(width)
        self.conv_body = convolutions(config)
        self.enlarge = ENLARGE[config.enlarge](config, scale)
        initialize(self)
        if self.skip == "bicubic":  # training starts from the bicubic image
            *_, last = (module for module in self.enlarge.modules() if isinstance(module, nn.Conv2d))
            for parameter in last.parameters():
                nn.init.zeros_(parameter)

    def forward(self, lr: Tensor) -> Tensor:
        """(B, C, h, w) in [0, 1] -> (B, C, h scale, w scale)."""
        height, width = lr.shape[-2:]
        x = padded(lr - self.mean, self.window)  # whole windows
        shallow = self.stem(self.conv_first(x))  # (B, width, h, w)
        tokens = self.embed_norm(self.embed(shallow.permute(0, 2, 3, 1)))  # (B, h, w, width)
        apart = shifted_apart(x.shape[-2], x.shape[-1], self.window, x.device)
        for layer in self.layers:
            tokens = layer(tokens, apart)
        features = shallow + self.conv_body(self.norm(tokens).permute(0, 3, 1, 2))
        sr = self.enlarge(features)[..., : height * self.scale, : width * self.scale]
        return sr + (imresize(lr, self.scale) if self.skip == "bicubic" else self.mean)


def padded(images: Tensor, grain: int) -> Tensor:
    """Reflected on the right and below to a multiple of `grain`; what is too small to be reflected is repeated."""
    height, width = images.shape[-2:]
    missing = (0, -width % grain, 0, -height % grain)
    small = missing[1] >= width or missing[3] >= height
    return F.pad(images, missing, mode="replicate" if small else "reflect")


def shifted_apart(height: int, width: int, window: int, device: torch.device) -> Tensor:
    """(windows, N, N) with N = window^2: minus infinity between pixels that only the cyclic shift brings into one window."""

    def strips(size: int) -> Tensor:
        """Which strip of an axis a pixel belongs to: whole windows, the cut one, or the one that comes from the other side."""
        place = torch.arange(size, device=device)
        return (place >= size - window).int() + (place >= size - window // 2).int()

    region = strips(height)[:, None] * 3 + strips(width)[None, :]  # (h, w)
    pixels = windows(region[None, :, :, None], window)[0, ..., 0]  # (windows, N)
    other = pixels[:, :, None] != pixels[:, None, :]
    return torch.zeros(other.shape, device=device).masked_fill(other, -math.inf)


def windows(x: Tensor, window: int) -> Tensor:
    """(B, h, w, C) -> (B, windows, window^2, C)."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(batch, -1, window * window, channels)


def joined(x: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `windows`."""
    batch, _, pixels, channels = x.shape
    window = math.isqrt(pixels)
    x = x.view(batch, height // window, width // window, window, window, channels)
    return x.transpose(2, 3).reshape(batch, height, width, channels)


class Group(nn.Module):
    """Blocks, every second one shifted, then a convolution; the group learns a residual."""

    def __init__(self, depth: int, config: Config) -> None:
        super().__init__()
        shifts = [config.window // 2 if number % 2 else 0 for number in range(depth)]
        self.blocks = nn.ModuleList(Block(shift, config) for shift in shifts)
        self.conv = convolutions(config)

    def forward(self, x: Tensor, apart: Tensor) -> Tensor:
        inside = x
        for block in self.blocks:
            inside = block(inside, apart)
        return x + self.conv(inside.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Block(nn.Module):
    def __init__(self, shift: int, config: Config) -> None:
        super().__init__()
        self.shift, self.window, width = shift, config.window, config.width
        hidden = int(width * config.mlp_ratio)
        self.norm1 = nn.LayerNorm(width)
        self.attention = WindowAttention(config)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor, apart: Tensor) -> Tensor:
        """(B, h, w, C) -> the same."""
        height, width = x.shape[1:3]
        turned = torch.roll(self.norm1(x), (-self.shift, -self.shift), (1, 2)) if self.shift else self.norm1(x)
        attended = self.attention(windows(turned, self.window), apart if self.shift else None)
        attended = joined(attended, height, width)
        x = x + (torch.roll(attended, (self.shift, self.shift), (1, 2)) if self.shift else attended)
        return x + self.mlp(self.norm2(x))


class WindowAttention(nn.Module):
    """softmax(q k / sqrt(d) + bias) v inside every window. torch chooses the kernel: FlashAttention where nothing is added."""

    place: Tensor
    turns: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads, side = config.heads, config.window
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.project = nn.Linear(config.width, config.width)
        rows, columns = torch.arange(side * side) // side, torch.arange(side * side) % side
        self.bias = None
        if config.positions == "bias":
            self.bias = nn.Parameter(torch.zeros((2 * side - 1) ** 2, config.heads))  # one value per difference of two places
            apart = [place[:, None] - place[None, :] + side - 1 for place in (rows, columns)]
            self.register_buffer("place", apart[0] * (2 * side - 1) + apart[1], persistent=False)  # (N, N)
        else:
            pairs = config.width // config.heads // 4  # of channels, per axis
            frequencies = BASE ** (-torch.arange(pairs) / pairs)
            angles = torch.cat([place[:, None] * frequencies for place in (rows, columns)], 1)  # (N, 2 pairs)
            self.register_buffer("turns", torch.stack([angles.cos(), angles.sin()]), persistent=False)

    def forward(self, x: Tensor, apart: Tensor | None) -> Tensor:
        """(B, windows, N, C) -> the same."""
        batch, number, pixels, _ = x.shape
        parts = self.qkv(x).view(batch, number, pixels, 3, self.heads, -1)
        q, k, v = parts.permute(3, 0, 1, 4, 2, 5)  # (B, windows, heads, N, d) each
        if self.bias is None:
            q, k = rotated(q, self.turns), rotated(k, self.turns)
        added = None if self.bias is None else self.bias[self.place].permute(2, 0, 1)[None]  # (1, heads, N, N)
        if apart is None:  # every window adds the same
            q, k, v = (each.flatten(0, 1) for each in (q, k, v))  # the kernels take four axes
        else:
            q, k, v = (each.flatten(1, 2) for each in (q, k, v))
            added = apart[:, None] if added is None else added + apart[:, None]  # (windows, heads or 1, N, N)
            added = added.expand(number, self.heads, pixels, pixels).flatten(0, 1)[None]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=None if added is None else added.to(q.dtype))
        attended = attended.view(batch, number, self.heads, pixels, -1).transpose(2, 3).reshape(x.shape)
        return self.project(attended)


def rotated(x: Tensor, turns: Tensor) -> Tensor:
    """Turns pairs of channels by the angles of their place, (..., N, d). Channels beyond a multiple of four stay."""
    cos, sin = turns.to(x.dtype)
    count = cos.shape[-1]
    a, b, rest = x[..., :count], x[..., count : 2 * count], x[..., 2 * count :]
    return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], -1)


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.gelu(self.conv1(x)))


def convolutions(config: Config) -> nn.Module:
    """One convolution, or three with a narrow middle."""
    width, narrow = config.width, config.width // 4
    if config.group_end == "1conv":
        return nn.Conv2d(width, width, 3, padding=1)
    return nn.Sequential(
        nn.Conv2d(width, narrow, 3, padding=1), nn.LeakyReLU(0.2),
        nn.Conv2d(narrow, narrow, 1), nn.LeakyReLU(0.2),
        nn.Conv2d(narrow, width, 3, padding=1),
    )  # fmt: skip


class Shuffle(nn.Module):
    WIDTH = 64

    def __init__(self, config: Config, scale: int) -> None:
        super().__init__()
        self.conv_before = nn.Conv2d(config.width, self.WIDTH, 3, padding=1)
        self.ups = nn.ModuleList(nn.Conv2d(self.WIDTH, factor**2 * self.WIDTH, 3, padding=1) for factor in FACTORS[scale])
        self.factors = FACTORS[scale]
        self.conv_last = nn.Conv2d(self.WIDTH, config.channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.conv_before(x))
        for up, factor in zip(self.ups, self.factors, strict=True):
            x = F.pixel_shuffle(up(x), factor)
        return self.conv_last(x)


class Direct(nn.Module):
    def __init__(self, config: Config, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.up = nn.Conv2d(config.width, scale**2 * config.channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.up(x), self.scale)


class Nearest(nn.Module):
    def __init__(self, config: Config, scale: int) -> None:
        super().__init__()
        width = Shuffle.WIDTH
        self.conv_before = nn.Conv2d(config.width, width, 3, padding=1)
        self.ups = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in FACTORS[scale])
        self.conv_hr = nn.Conv2d(width, width, 3, padding=1)
        self.conv_last = nn.Conv2d(width, config.channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.conv_before(x))
        for up in self.ups:
            x = F.leaky_relu(up(F.interpolate(x, scale_factor=2, mode="nearest")), 0.2)
        return self.conv_last(F.leaky_relu(self.conv_hr(x), 0.2))


ENLARGE = {"shuffle": Shuffle, "direct": Direct, "nearest": Nearest}


def initialize(network: nn.Module) -> None:
    """As the paper's code: truncated normal of deviation 0.02 for linear layers and tables, torch's default for convolutions."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, WindowAttention) and module.bias is not None:
            nn.init.trunc_normal_(module.bias, std=0.02)
