"""What is done to crops before LR is made of them: flips and quarter turns, which stored LR shares, and `data.augment`.

On the device, for a whole batch at once, by random numbers of each sample's own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sr_dist.data.keyed_random import Draws
from sr_dist.recipe.sections import Augment


def to_float(images: Tensor) -> Tensor:
    return images.to(torch.float32) / 255


def turned(images: Tensor, bits: Tensor, flip: bool, rotate: bool) -> Tensor:
    """One of the eight orientations per image, by its three lowest bits; oblong images are not put on their side."""
    for allowed, bit, dims in ((flip, 0, -1), (rotate, 1, -2)):
        if allowed:
            images = torch.where((bits >> bit & 1).bool().view(-1, 1, 1, 1), images.flip(dims), images)
    if rotate and images.shape[-1] == images.shape[-2]:
        images = torch.where((bits >> 2 & 1).bool().view(-1, 1, 1, 1), images.transpose(-1, -2), images)
    return images


def varied(images: Tensor, bits: Tensor, ways: Augment) -> Tensor:
    """Tilted, in other contrast and brightness, with a rectangle missing: as far as `ways` goes, by each sample's bits."""
    if ways == Augment():
        return images
    draws = Draws(bits)
    if ways.rotate_degrees:
        images = tilted(images, draws.uniform(-ways.rotate_degrees, ways.rotate_degrees).deg2rad())
    if ways.contrast:
        mean = _mean(images)
        images = mean + (images - mean) * _each(draws.uniform(1 - ways.contrast, 1 + ways.contrast), images)
    if ways.brightness:
        images = images + _each(draws.uniform(-ways.brightness, ways.brightness), images)
    if ways.erase:
        images = torch.where(rectangle(images, draws) & _each(draws.chance(ways.erase), images).bool(), _mean(images), images)
    return images.clamp(0, 1)


def tilted(images: Tensor, angle: Tensor) -> Tensor:
    """Turned about the middle by an angle each, (B,) in radians, counterclockwise; what comes from outside repeats the border."""
    height, width = images.shape[-2:]
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # The grid counts both sides from -1 to 1, so that oblong images need their ratio.
    rows = [torch.stack([cos, -sin * height / width, zero], -1), torch.stack([sin * width / height, cos, zero], -1)]
    grid = F.affine_grid(torch.stack(rows, 1).to(images.dtype), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def rectangle(images: Tensor, draws: Draws) -> Tensor:
    """(B, 1, H, W), true inside a rectangle whose sides are a tenth to four tenths of the image's."""
    inside = []
    for size in images.shape[-2:]:
        length = draws.uniform(0.1, 0.4) * size
        start = draws.uniform() * (size - length)
        place = torch.arange(size, device=images.device)[None] + 0.5
        inside.append((place >= start[:, None]) & (place < (start + length)[:, None]))
    return inside[0][:, None, :, None] & inside[1][:, None, None, :]


def _mean(images: Tensor) -> Tensor:
    return images.mean((1, 2, 3), keepdim=True)


def _each(values: Tensor, images: Tensor) -> Tensor:
    return values.to(images.dtype).view(-1, 1, 1, 1)
