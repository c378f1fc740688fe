"""Applies a network to any image: grey or colour, whole or in tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sr_dist.core.colour import luma
from sr_dist.core.errors import UserError
from sr_dist.core.resize import imresize

Upscale = Callable[[Tensor], Tensor]  # (B, C, h, w) in [0, 1] -> (B, C, h scale, w scale)


def adapt_channels(network: nn.Module, channels: int, scale: int) -> Upscale:
    """A network of `channels` channels as a function of images of one or three channels, which keep their channels.

    A colour network gets a grey image as three equal channels and returns its luma. A grey network upscales only the luma of a
    colour image: bicubic(image) + (network(Y) - bicubic(Y)), as in SRCNN.
    """

    def enlarged(lr: Tensor) -> Tensor:
        sr = network(lr)
        check_size(sr, lr, (len(lr), channels, lr.shape[2] * scale, lr.shape[3] * scale))
        return sr

    def upscale(lr: Tensor) -> Tensor:
        if lr.shape[1] == channels:
            return enlarged(lr)
        if channels == 3:
            return luma(enlarged(lr.expand(-1, 3, -1, -1)))
        smooth = imresize(lr, scale)
        return smooth + enlarged(luma(lr)) - luma(smooth)

    return upscale


def check_size(sr: Tensor, lr: Tensor, expected: tuple[int, ...]) -> None:
    """Refuses a generator, which may be a user's own file, that makes images of another size."""
    if tuple(sr.shape) != expected:
        raise UserError(f"generator: it returns {tuple(sr.shape)} for LR of {tuple(lr.shape)}; it must return {expected}")


@dataclass(frozen=True)
class AxisTile:
    """A tile along one axis: its LR pixels, and the weight of each of its HR pixels."""

    low: int
    high: int
    weight: Tensor  # (scale (high - low),)


def axis_tiles(size: int, tile: int, overlap: int, scale: int) -> list[AxisTile]:
    """Tiles whose weights add up to one at every pixel.

    A tile owns `tile` pixels and sees `overlap` more on each side that is cut. Around the border between two tiles the weights
    cross-fade over a width of `overlap`, so every pixel with weight lies at least overlap / 2 from a cut. A network with a
    smaller receptive field gives the same image as without tiles; a larger one gives no visible seam.
    """
    position = (torch.arange(size * scale) + 0.5) / scale
    starts = range(0, size, tile)
    weights = torch.stack([_weight(position, start, start + tile, size, overlap) for start in starts])
    weights = weights / weights.sum(0)
    bounds = [(max(start - overlap, 0), min(start + tile + overlap, size)) for start in starts]
    return [AxisTile(low, high, weight[low * scale : high * scale]) for (low, high), weight in zip(bounds, weights, strict=True)]


def _weight(position: Tensor, left: int, right: int, size: int, overlap: int) -> Tensor:
    width = max(overlap, 1e-6)
    rise = (0.5 + (position - left) / width).clamp(0, 1) if left > 0 else torch.ones_like(position)
    fall = (0.5 + (right - position) / width).clamp(0, 1) if right < size else torch.ones_like(position)
    return rise * fall


@torch.no_grad()
def upscale_in_tiles(upscale: Upscale, lr: Tensor, scale: int, tile: int | None, overlap: int, device: torch.device) -> Tensor:
    """(B, C, h, w) -> (B, C, h scale, w scale), both on the CPU; the device holds one tile at a time."""
    height, width = lr.shape[-2:]
    if tile is None or max(height, width) <= tile:
        return upscale(lr.to(device)).cpu()
    sr = torch.zeros(*lr.shape[:2], height * scale, width * scale)
    columns = axis_tiles(width, tile, overlap, scale)
    for row in axis_tiles(height, tile, overlap, scale):
        for column in columns:
            tile_sr = upscale(lr[..., row.low : row.high, column.low : column.high].to(device)).cpu()
            area = (..., slice(row.low * scale, row.high * scale), slice(column.low * scale, column.high * scale))
            sr[area] += tile_sr * row.weight[:, None] * column.weight
    return sr
