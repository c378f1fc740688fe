"""LPIPS 0.1 per image: the lpips package's, on features of AlexNet and VGG16; whole images without border, in [-1, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

from sr_dist.evaluation.protocol import Protocol, as_stored
from sr_dist.losses.content.lpips import SMALLEST, published
from sr_dist.models.pretrained import MissingWeights

BETTER = {"lpips_alex": "lower", "lpips_vgg": "lower"}
NEEDS = {"lpips_alex": "alexnet-owt-7be5be79.pth", "lpips_vgg": "vgg16-397923af.pth"}
PERCEPTUAL = True


def conditions(columns: Sequence[str]) -> dict[str, Any]:
    return {
        "version": "0.1",
        "package": metadata.version("lpips"),
        "weights": {column: NEEDS[column] for column in columns},
        "input": "whole images without border, in [-1, 1]",
    }


def per_image(sr: Tensor, hr: Tensor, protocol: Protocol, grey: bool) -> dict[str, list[float]]:
    """nan below 31 pixels. Leaves out a column whose weights file is missing."""
    values: dict[str, list[float]] = {}
    small = min(hr.shape[-2:]) < SMALLEST
    x, y = (2 * as_stored(images, protocol).float() - 1 for images in (sr, hr))
    for column in BETTER:
        with suppress(MissingWeights):  # the report states it
            network = _network(column.removeprefix("lpips_"), sr.device)
            values[column] = [float("nan")] * len(sr) if small else network(x, y).flatten().tolist()
    return values


@cache
def _network(net: str, device: torch.device) -> nn.Module:
    return published(net, "lpips").to(device)
