"""The conditions of PSNR and SSIM. A number means little without them: RGB without a border is 1 to 3 dB lower than Y."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sr_dist.core.colour import full_y, studio_y
from sr_dist.core.errors import UserError, nearest
from sr_dist.evaluation.presets import PROTOCOLS

TILE = 128  # pixels; float64 tiles of this size stay in a processor's cache
BEST_PSNR = 100.0  # of identical images, because infinity would make the mean infinite


@dataclass(frozen=True)
class Protocol:
    name: str
    scale: int
    border: int  # pixels ignored on every side
    eight_bit: bool  # images are rounded to 8 bits, as a file stores them
    rounded_luma: bool  # MATLAB's rgb2ycbcr rounds Y of 8-bit images; BasicSR does not

    def describe(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "channel": "Y (BT.601, studio range; images stored grey are their own Y) and RGB, each under its name",
            "mean": f"of per-image values; identical images count as {BEST_PSNR:g} dB",
            "ssim": "Gaussian 11 x 11, sigma 1.5, K 0.01 0.03, valid positions",
        }


def protocol(name: str, scale: int) -> Protocol:
    if name not in PROTOCOLS:
        raise UserError(f"protocol: no '{name}'{nearest(name, PROTOCOLS)}")
    preset = PROTOCOLS[name]
    return Protocol(name, scale, preset.border * scale, preset.eight_bit, preset.rounded_luma)


def as_stored(images: Tensor, protocol: Protocol) -> Tensor:
    """(B, 3, H, W) in [0, 1] as a file stores them: clipped, 8 bit, float64."""
    stored = images.to(torch.float64, copy=True).clamp_(0, 1)
    return stored.mul_(255).add_(0.5).floor_().div_(255) if protocol.eight_bit else stored  # `resize.rounded`, without copies


def inside_border(images: Tensor, protocol: Protocol) -> Tensor:
    """(B, 3, H, W) in [0, 1] as a file stores them, without the border."""
    images, border = as_stored(images, protocol), protocol.border
    return images[..., border:-border, border:-border] if border else images


def tiles(sr: Tensor, hr: Tensor, protocol: Protocol, overlap: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Both images inside the border in tiles, (B, 3, h, w).

    A tile owns up to TILE pixels a side and sees `overlap` more at the right and below, so windows of overlap + 1 pixels have
    every valid position in exactly one tile. None where the border or the window leaves no pixel.
    """
    height, width = (side - 2 * protocol.border for side in hr.shape[-2:])
    for top in range(0, height - overlap, TILE):
        for left in range(0, width - overlap, TILE):
            low, high = protocol.border + top, protocol.border + min(top + TILE + overlap, height)
            first, last = protocol.border + left, protocol.border + min(left + TILE + overlap, width)
            yield sr[..., low:high, first:last], hr[..., low:high, first:last]


def planes(images: Tensor, protocol: Protocol, grey: bool, out: Tensor | None = None) -> Tensor:
    """(B, 3, h, w) in [0, 1] -> Y, R, G and B as a file stores them, (B, 4, h, w) in [0, 255], float64."""
    if out is None:
        out = images.new_empty(len(images), 4, *images.shape[-2:], dtype=torch.float64)
    stored = as_stored(images, protocol)
    out[:, :1].copy_(luma(stored, protocol, grey))
    torch.mul(stored, 255, out=out[:, 1:])
    return out


def luma(images: Tensor, protocol: Protocol, grey: bool) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> Y (B, 1, H, W) in [0, 255]."""
    y = full_y(images) if grey else studio_y(images)
    return (y + 0.5).floor() if protocol.rounded_luma else y
