"""LPIPS 0.1 per image: the lpips package's, on features of AlexNet and VGG16; whole images without border, in [-1, 1].

VGG16's features of a megapixel are half a gigabyte. Large images are therefore taken in tiles that see HALO pixels more on each
side, and a feature counts in the tile that owns it. HALO covers the receptive field, so the value is that of the whole image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from importlib import metadata
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sr_dist.evaluation.protocol import Protocol, as_stored
from sr_dist.losses.content.lpips import SMALLEST, published
from sr_dist.models.pretrained import MissingWeights

BETTER = {"lpips_alex": "lower", "lpips_vgg": "lower"}
NEEDS = {"lpips_alex": "alexnet-owt-7be5be79.pth", "lpips_vgg": "vgg16-397923af.pth"}
RANGE = {"lpips_alex": (0, None), "lpips_vgg": (0, None)}
PERCEPTUAL = True
WHOLE = 2**20  # pixels that a network sees at once; a larger image is taken in tiles
STRIDES = {"alex": (4, 8, 16, 16, 16), "vgg": (1, 2, 4, 8, 16)}  # pixels from one feature of a level to the next
TILE, HALO = 768, 112  # multiples of 16, so that tiles have the features of the whole image; no feature sees 112 pixels far


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
            values[column] = [float("nan")] * len(sr) if small else distances(network, x, y)
    return values


def distances(network: Any, x: Tensor, y: Tensor) -> list[float]:
    """The distance of each pair, (B, 3, H, W) in [-1, 1]."""
    pixels = x.shape[-2] * x.shape[-1]
    if pixels > WHOLE:
        return [_in_tiles(network, x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
    parts = zip(x.split(WHOLE // pixels), y.split(WHOLE // pixels), strict=True)
    return [value for a, b in parts for value in network(a, b).flatten().tolist()]


def _in_tiles(network: Any, x: Tensor, y: Tensor) -> float:
    """The sum over levels of the mean over the level's positions. Positions are added up tile by tile, in float64."""
    strides = STRIDES[network.pnet_type]
    sums, counts = [0.0] * len(strides), [0] * len(strides)
    for rows in _spans(x.shape[-2]):
        for columns in _spans(x.shape[-1]):
            area = (..., slice(rows.low, rows.high), slice(columns.low, columns.high))
            for level, values in enumerate(_levels(network, x[area], y[area])):
                owned = values[..., rows.owned(strides[level]), columns.owned(strides[level])]
                sums[level] += float(owned.double().sum())
                counts[level] += owned.numel()
    return sum(total / count for total, count in zip(sums, counts, strict=True))


class Span(NamedTuple):
    """A tile along one axis: it sees the pixels from `low` to `high` and owns those from `start` to `stop`."""

    low: int
    high: int
    start: int
    stop: int | None  # None: to the end

    def owned(self, stride: int) -> slice:
        """The features of a level that the tile owns, counted from its first."""
        stop = None if self.stop is None else (self.stop - self.low) // stride
        return slice((self.start - self.low) // stride, stop)


def _spans(size: int) -> list[Span]:
    return [
        Span(max(start - HALO, 0), min(start + TILE + HALO, size), start, start + TILE if start + TILE < size else None)
        for start in range(0, size, TILE)
    ]


def _levels(network: Any, x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Every level's weighted squared differences of unit-length features, (1, 1, h, w); one level's features at a time."""
    from lpips import normalize_tensor  # takes seconds

    a, b = network.scaling_layer(x), network.scaling_layer(y)
    for level, weigh in enumerate(network.lins, 1):
        part = getattr(network.net, f"slice{level}")
        a, b = part(a), part(b)
        yield weigh((normalize_tensor(a) - normalize_tensor(b)).square())


@cache
def _network(net: str, device: torch.device) -> nn.Module:
    return published(net, "lpips").to(device)
