"""Structural similarity per image, of Y and of RGB: Gaussian window 11 x 11, sigma 1.5, valid positions only.

    SSIM = (2 m_a m_b + C1) (2 s_ab + C2) / ((m_a^2 + m_b^2 + C1) (s_aa + s_bb + C2)),  C1 = (0.01 L)^2, C2 = (0.03 L)^2, L = 255

m and s are means and covariances under the window. The window is separable, and s_aa + s_bb needs only the mean of a^2 + b^2, so
four maps are blurred. All is float64, in tiles that stay in the processor's cache.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from sr_dist.evaluation.protocol import Protocol, luma, stored_tiles

BETTER = {"ssim_y": "higher", "ssim_rgb": "higher"}
RANGE = {"ssim_y": (-1, 1), "ssim_rgb": (-1, 1)}
WINDOW, SIGMA = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
AT_ONCE = 2**16  # pixels of the planes that are blurred together on a CPU


def per_image(sr: Tensor, hr: Tensor, protocol: Protocol, grey: bool) -> dict[str, list[float]]:
    """nan if an image is smaller than the window."""
    sums = hr.new_zeros(len(hr), 4, dtype=torch.float64)  # of the positions' values, of Y, R, G and B
    positions = 0
    for x, y in stored_tiles(sr, hr, protocol, WINDOW - 1):
        a, b = (torch.cat([luma(images, protocol, grey), images * 255], 1) for images in (x, y))  # (B, 4, h, w)
        sums += plane_sums(a.flatten(0, 1), b.flatten(0, 1)).unflatten(0, (-1, 4))
        positions += (x.shape[-2] - WINDOW + 1) * (x.shape[-1] - WINDOW + 1)
    means = sums / positions  # nan for no positions: 0 / 0
    return {"ssim_y": means[:, 0].tolist(), "ssim_rgb": means[:, 1:].mean(1).tolist()}


def plane_sums(a: Tensor, b: Tensor) -> Tensor:
    """(planes, h, w) -> the sum of every plane's map."""
    most = max(AT_ONCE // (a.shape[-2] * a.shape[-1]), 1) if a.device.type == "cpu" else len(a)
    return torch.cat([_map(x, y).sum((1, 2)) for x, y in zip(a.split(most), b.split(most), strict=True)])


def _map(a: Tensor, b: Tensor) -> Tensor:
    """(planes, h, w) in [0, 255] -> (planes, h - 10, w - 10)"""
    mean_a, mean_b, product, squares = _blur(a), _blur(b), _blur(a * b), _blur(torch.addcmul(a * a, b, b))
    means, mean_squares = mean_a * mean_b, mean_a.square_().add_(mean_b.square_())
    above = product.sub_(means).mul_(2).add_(C2).mul_(means.mul_(2).add_(C1))
    below = squares.sub_(mean_squares).add_(C2).mul_(mean_squares.add_(C1))
    return above.div_(below)


def _blur(maps: Tensor) -> Tensor:
    """The window at its valid positions: per axis a product with a matrix, which for tiles is faster than a convolution."""
    rows, columns = (_window(size, maps.device) for size in maps.shape[-2:])
    return rows @ maps @ columns.T


@cache
def _window(size: int, device: torch.device) -> Tensor:
    """(size - 10, size): the weights of every position of the window."""
    taps = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-taps.square() / (2 * SIGMA**2))
    matrix = torch.zeros(size - WINDOW + 1, size, dtype=torch.float64)
    for position, row in enumerate(matrix):
        row[position : position + WINDOW] = weights / weights.sum()
    return matrix.to(device)
