"""Augmentation of crops, before LR is made: flips and quarter turns, also of stored LR, and `data.augment`.

It runs on the device, on a whole batch at once, with random numbers keyed by the sample.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sr_dist.core.keyed_random import Draws
from sr_dist.core.resize import full_precision
from sr_dist.recipe.sections import Augment


def to_float(images: Tensor) -> Tensor:
    return images.to(torch.float32) / 255


def orient(images: Tensor, bits: Tensor, flip: bool, rotate: bool) -> Tensor:
    """One of eight orientations per image, chosen by its three lowest bits. Images that are not square are not transposed."""
    for allowed, bit, dims in ((flip, 0, -1), (rotate, 1, -2)):
        if allowed:
            images = torch.where((bits >> bit & 1).bool().view(-1, 1, 1, 1), images.flip(dims), images)
    if rotate and images.shape[-1] == images.shape[-2]:
        images = torch.where((bits >> 2 & 1).bool().view(-1, 1, 1, 1), images.transpose(-1, -2), images)
    return images


def vary(images: Tensor, bits: Tensor, limits: Augment) -> Tensor:
    """Tilts images, changes contrast and brightness, and erases rectangles, within `limits`, by each sample's bits."""
    if limits == Augment():
        return images
    draws = Draws(bits)
    if limits.rotate_degrees:
        images = tilt(images, draws.uniform(-limits.rotate_degrees, limits.rotate_degrees).deg2rad())
    if limits.contrast:
        mean = _mean(images)
        images = mean + (images - mean) * _each(draws.uniform(1 - limits.contrast, 1 + limits.contrast), images)
    if limits.brightness:
        images = images + _each(draws.uniform(-limits.brightness, limits.brightness), images)
    if limits.erase:
        images = torch.where(rectangle(images, draws) & _each(draws.chance(limits.erase), images).bool(), _mean(images), images)
    return images.clamp(0, 1)


def tilt(images: Tensor, angle: Tensor) -> Tensor:
    """Rotates each image counterclockwise about its centre by its angle, (B,) in radians. The border is repeated outward."""
    height, width = images.shape[-2:]
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # Both axes of the grid run from -1 to 1, so images that are not square need the aspect ratio.
    rows = [torch.stack([cos, -sin * height / width, zero], -1), torch.stack([sin * width / height, cos, zero], -1)]
    with full_precision(images.device.type):  # the grid is a product of matrices
        grid = F.affine_grid(torch.stack(rows, 1).to(images.dtype), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def rectangle(images: Tensor, draws: Draws) -> Tensor:
    """(B, 1, H, W), true in a random rectangle whose sides are 0.1 to 0.4 of the image's."""
    inside = []
    for size in images.shape[-2:]:
        length = draws.uniform(0.1, 0.4) * size
        start = draws.uniform() * (size - length)
        pixel = torch.arange(size, device=images.device)[None] + 0.5
        inside.append((pixel >= start[:, None]) & (pixel < (start + length)[:, None]))
    return inside[0][:, None, :, None] & inside[1][:, None, None, :]


def _mean(images: Tensor) -> Tensor:
    return images.mean((1, 2, 3), keepdim=True)


def _each(values: Tensor, images: Tensor) -> Tensor:
    return values.to(images.dtype).view(-1, 1, 1, 1)
