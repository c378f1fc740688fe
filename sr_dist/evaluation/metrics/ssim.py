"""Structural similarity per image, of Y and of RGB: Gaussian window 11 x 11, sigma 1.5, valid positions only.

    SSIM = (2 m_a m_b + C1) (2 s_ab + C2) / ((m_a^2 + m_b^2 + C1) (s_aa + s_bb + C2)),  C1 = (0.01 L)^2, C2 = (0.03 L)^2, L = 255

m and s are means and covariances under the window. The window is separable, and s_aa + s_bb needs only the mean of a^2 + b^2, so
four maps are blurred. All is float64, in tiles that stay in the processor's cache.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from sr_dist.core.constants import numbers
from sr_dist.evaluation.protocol import Protocol, planes, tiles

BETTER = {"ssim_y": "higher", "ssim_rgb": "higher"}
RANGE = {"ssim_y": (-1, 1), "ssim_rgb": (-1, 1)}
WINDOW, SIGMA = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
AT_ONCE = 2**17  # pixels of the planes that are blurred together on a CPU
BLOCK = 16  # positions of the window in one product on a CPU


@torch.no_grad()
def per_image(sr: Tensor, hr: Tensor, protocol: Protocol, grey: bool) -> dict[str, list[float]]:
    """nan if an image is smaller than the window."""
    sums = hr.new_zeros(len(hr), 4, dtype=torch.float64)  # of the positions' values, of Y, R, G and B
    positions = 0
    for x, y in tiles(sr, hr, protocol, WINDOW - 1):
        pixels = x.shape[-2] * x.shape[-1]
        most = max(AT_ONCE // (4 * pixels), 1) if x.device.type == "cpu" else len(x)
        sums += torch.cat([_sums(*pair, protocol, grey) for pair in zip(x.split(most), y.split(most), strict=True)])
        positions += (x.shape[-2] - WINDOW + 1) * (x.shape[-1] - WINDOW + 1)
    means = sums / positions  # nan for no positions: 0 / 0
    return {"ssim_y": means[:, 0].tolist(), "ssim_rgb": means[:, 1:].mean(1).tolist()}


def _sums(x: Tensor, y: Tensor, protocol: Protocol, grey: bool) -> Tensor:
    """(B, 3, h, w) -> (B, 4): the sum of every plane's map."""
    maps = _empty_maps(4 * len(x), x)
    for images, place in zip((x, y), maps, strict=False):
        planes(images, protocol, grey, out=place.unflatten(0, (-1, 4)))
    return _map(maps).sum((0, 2)).view(-1, 4)


def plane_sums(a: Tensor, b: Tensor) -> Tensor:
    """(planes, h, w) in [0, 255] -> the sum of every plane's map."""
    maps = _empty_maps(len(a), a)
    maps[0].copy_(a), maps[1].copy_(b)
    return _map(maps).sum((0, 2))


def _empty_maps(count: int, like: Tensor) -> Tensor:
    """(4, planes, h, w): for a, b, and products of theirs. In memory a line of all of them lies side by side, so that the window
    is one product per axis."""
    height, width = like.shape[-2:]
    return like.new_empty(height, 4, count, width, dtype=torch.float64).permute(1, 2, 0, 3)


def _map(maps: Tensor) -> Tensor:
    """(4, planes, h, w), of which a and b are filled -> (h - 10, planes, w - 10)

    With p = 2 m_a m_b + C1 and q = m_a^2 + m_b^2 + C1, SSIM is p (2 E[a b] + C1 + C2 - p) / (q (E[a^2 + b^2] + C1 + C2 - q)).
    """
    a, b, product, squares = maps
    c1, both = (numbers((value,), torch.float64, maps.device)[0] for value in (C1, C1 + C2))
    torch.addcmul(both, a, b, value=2, out=product)
    torch.addcmul(both, a, a, out=squares).addcmul_(b, b)
    blurred = _blur(maps.permute(2, 0, 1, 3).flatten(1, 2)).unflatten(1, (4, -1))
    mean_a, mean_b, product, squares = blurred.unbind(1)
    p = torch.addcmul(c1, mean_a, mean_b, value=2)
    q = torch.addcmul(c1, mean_a, mean_a).addcmul_(mean_b, mean_b)
    return product.sub_(p).mul_(p).div_(squares.sub_(q).mul_(q))


def _blur(maps: Tensor) -> Tensor:
    """(h, maps, w) -> (h - 10, maps, w - 10): the window at its valid positions, in products of blocks with a small matrix,
    which for tiles is faster than a convolution and than one product with many zeros."""
    height, count, width = maps.shape
    lines = maps.new_empty(height - WINDOW + 1, count * width)
    for first, end, weights in _blocks(height, maps.device):
        torch.mm(weights, maps.flatten(1)[first : end + WINDOW - 1], out=lines[first:end])
    lines = lines.view(-1, width)
    result = maps.new_empty(len(lines), width - WINDOW + 1)
    for first, end, weights in _blocks(width, maps.device):
        torch.mm(lines[:, first : end + WINDOW - 1], weights.T, out=result[:, first:end])
    return result.unflatten(0, (-1, count))


def _blocks(size: int, device: torch.device) -> list[tuple[int, int, Tensor]]:
    """The positions of an axis, in parts: the first, the one after the last, the weights of the window at each."""
    positions = size - WINDOW + 1
    length = BLOCK if device.type == "cpu" else positions
    parts = [(first, min(first + length, positions)) for first in range(0, positions, length)]
    return [(first, end, _window(end - first, device)) for first, end in parts]


@cache
def _window(positions: int, device: torch.device) -> Tensor:
    """(positions, positions + 10): the weights of every position of the window."""
    taps = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-taps.square() / (2 * SIGMA**2))
    matrix = torch.zeros(positions, positions + WINDOW - 1, dtype=torch.float64)
    for position, row in enumerate(matrix):
        row[position : position + WINDOW] = weights / weights.sum()
    return matrix.to(device)
