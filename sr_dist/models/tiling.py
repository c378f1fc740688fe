"""A network on any image: grey or colour, whole or in tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sr_dist.core.resize import imresize

Upscale = Callable[[Tensor], Tensor]  # (B, C, h, w) in [0, 1] -> (B, C, h scale, w scale)
LUMA = (0.299, 0.587, 0.114)  # BT.601


def for_any_colour(network: nn.Module, channels: int, scale: int) -> Upscale:
    """The network for images of one channel or three, which stay what they are.

    A grey image goes through a colour network three times over and comes back as its luma. Of a colour image a grey network
    restores the luma alone: bicubic(image) + (network(Y) - bicubic(Y)), as SRCNN's authors do.
    """

    def upscale(lr: Tensor) -> Tensor:
        if lr.shape[1] == channels:
            return network(lr)
        if channels == 3:
            return luma(network(lr.expand(-1, 3, -1, -1)))
        smooth = imresize(lr, scale)
        return smooth + network(luma(lr)) - luma(smooth)

    return upscale


def luma(images: Tensor) -> Tensor:
    """(B, 3, h, w) -> (B, 1, h, w)"""
    return (images * images.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)


@dataclass(frozen=True)
class Span:
    """A tile along one axis: what the network sees of LR, and how much every HR pixel of it counts."""

    low: int
    high: int
    weight: Tensor  # (scale (high - low),)


def spans(size: int, tile: int, overlap: int, scale: int) -> list[Span]:
    """Tiles whose weights add up to one at every pixel.

    A tile owns `tile` pixels and sees `overlap` more on each side that is cut. Around the border between two tiles the
    weights cross over a width of `overlap`, so whatever counts lies at least overlap / 2 from a cut: a network that looks no
    further gives the same image as without tiles, and one that does has no edge where a seam could be seen.
    """
    place = (torch.arange(size * scale) + 0.5) / scale
    starts = range(0, size, tile)
    weights = torch.stack([_weight(place, start, start + tile, size, overlap) for start in starts])
    weights = weights / weights.sum(0)
    bounds = [(max(start - overlap, 0), min(start + tile + overlap, size)) for start in starts]
    return [Span(low, high, weight[low * scale : high * scale]) for (low, high), weight in zip(bounds, weights, strict=True)]


def _weight(place: Tensor, left: int, right: int, size: int, overlap: int) -> Tensor:
    width = max(overlap, 1e-6)
    rise = (0.5 + (place - left) / width).clamp(0, 1) if left > 0 else torch.ones_like(place)
    fall = (0.5 + (right - place) / width).clamp(0, 1) if right < size else torch.ones_like(place)
    return rise * fall


@torch.no_grad()
def in_tiles(upscale: Upscale, lr: Tensor, scale: int, tile: int | None, overlap: int, device: torch.device) -> Tensor:
    """(B, C, h, w) -> (B, C, h scale, w scale), both on the CPU; the device holds one tile at a time."""
    height, width = lr.shape[-2:]
    if tile is None or max(height, width) <= tile:
        return upscale(lr.to(device)).cpu()
    sr = torch.zeros(*lr.shape[:2], height * scale, width * scale)
    columns = spans(width, tile, overlap, scale)
    for row in spans(height, tile, overlap, scale):
        for column in columns:
            part = upscale(lr[..., row.low : row.high, column.low : column.high].to(device)).cpu()
            place = (..., slice(row.low * scale, row.high * scale), slice(column.low * scale, column.high * scale))
            sr[place] += part * row.weight[:, None] * column.weight
    return sr
