"""LPIPS 0.1 per image: the lpips package's own, on AlexNet's and VGG16's features; whole images, no border, in [-1, 1]."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sr_dist.evaluation.protocol import Protocol, kept
from sr_dist.losses.content.lpips import SMALLEST, published
from sr_dist.models.pretrained import MissingWeights

BETTER = {"lpips_alex": "lower", "lpips_vgg": "lower"}
NEEDS = {"lpips_alex": "alexnet-owt-7be5be79.pth", "lpips_vgg": "vgg16-397923af.pth"}


def per_image(sr: Tensor, hr: Tensor, protocol: Protocol, grey: bool) -> dict[str, list[float]]:
    """Images (B, 3, H, W) in [0, 1] -> distance per image; nan below 31 pixels. A column without its file is left out."""
    found: dict[str, list[float]] = {}
    small = min(hr.shape[-2:]) < SMALLEST
    x, y = (2 * kept(images, protocol).float() - 1 for images in (sr, hr))
    for column in BETTER:
        with suppress(MissingWeights):  # the report says so
            network = _network(column.removeprefix("lpips_"), sr.device)
            found[column] = [float("nan")] * len(sr) if small else network(x, y).flatten().tolist()
    return found


@cache
def _network(net: str, device: torch.device) -> Any:
    return published(net, "lpips").to(device)
