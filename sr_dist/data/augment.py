"""Crops, flips and quarter turns that LR and HR share. Turns are made on the device, for a whole batch at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Place = Callable[[int, int, int], tuple[int, int]]  # (height, width, crop) -> (top, left), multiples of the scale


def crop_pair(hr: Tensor, lr: Tensor | None, crop: int | None, scale: int, place: Place) -> tuple[Tensor, Tensor | None]:
    """Corresponding crops of HR and (where it is stored) LR; without a crop, HR loses what does not divide by the scale."""
    if crop is None:
        height, width = hr.shape[-2] // scale * scale, hr.shape[-1] // scale * scale
        return hr[..., :height, :width], lr
    hr = _at_least(hr, crop)
    top, left = place(hr.shape[-2], hr.shape[-1], crop)
    if lr is not None:
        small = crop // scale
        lr = _at_least(lr, small)[..., top // scale : top // scale + small, left // scale : left // scale + small]
    return hr[..., top : top + crop, left : left + crop], lr


def _at_least(image: Tensor, side: int) -> Tensor:
    """Small images get their last row and column repeated (`data.small: replicate`; otherwise none come here)."""
    below, right = max(side - image.shape[-2], 0), max(side - image.shape[-1], 0)
    return F.pad(image[None].float(), (0, right, 0, below), mode="replicate")[0].to(image.dtype) if below or right else image


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
