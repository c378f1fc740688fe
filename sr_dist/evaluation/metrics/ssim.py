"""Structural similarity per image, of Y and of RGB: Gaussian window 11 x 11, sigma 1.5, valid positions only.

    SSIM = (2 m_a m_b + C1) (2 s_ab + C2) / ((m_a^2 + m_b^2 + C1) (s_aa + s_bb + C2)),  C1 = (0.01 L)^2, C2 = (0.03 L)^2, L = 255

m and s are means and covariances under the window. The window is separable, and s_aa + s_bb needs only the mean of a^2 + b^2:
two passes of 11 taps over four maps. Each tap is a whole-array operation in float64, in tiles that stay in the processor's cache.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sr_dist.evaluation.protocol import Protocol, luma, stored_tiles

BETTER = {"ssim_y": "higher", "ssim_rgb": "higher"}
RANGE = {"ssim_y": (-1, 1), "ssim_rgb": (-1, 1)}
WINDOW, SIGMA = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
AT_ONCE = {"cpu": 2**15}  # pixels of planes that are filtered together
ON_DEVICES = 2**23  # the same on GPUs, where few large operations are faster


def per_image(sr: Tensor, hr: Tensor, protocol: Protocol, grey: bool) -> dict[str, list[float]]:
    """nan if an image is smaller than the window."""
    sums = hr.new_zeros(len(hr), 4, dtype=torch.float64)  # of the positions' values, of Y, R, G and B
    positions = 0
    for x, y in stored_tiles(sr, hr, protocol, WINDOW - 1):
        a, b = (torch.cat([luma(images, protocol, grey), images * 255], 1) for images in (x, y))  # (B, 4, h, w)
        sums += _sums(a.flatten(0, 1), b.flatten(0, 1)).unflatten(0, (-1, 4))
        positions += (x.shape[-2] - WINDOW + 1) * (x.shape[-1] - WINDOW + 1)
    means = sums / positions  # nan for no positions: 0 / 0
    return {"ssim_y": means[:, 0].tolist(), "ssim_rgb": means[:, 1:].mean(1).tolist()}


def _sums(a: Tensor, b: Tensor) -> Tensor:
    """(planes, h, w) -> the sum of every plane's map."""
    most = max(AT_ONCE.get(a.device.type, ON_DEVICES) // (a.shape[-2] * a.shape[-1]), 1)
    return torch.cat([_map(x, y).sum((1, 2)) for x, y in zip(a.split(most), b.split(most), strict=True)])


def _map(a: Tensor, b: Tensor) -> Tensor:
    """(planes, h, w) in [0, 255] -> (planes, h - 10, w - 10)"""
    mean_a, mean_b, squares, product = _blur(_blur(torch.stack([a, b, a * a + b * b, a * b]), -2), -1)
    means, mean_squares = mean_a * mean_b, mean_a * mean_a + mean_b * mean_b
    return (2 * means + C1) * (2 * (product - means) + C2) / ((mean_squares + C1) * (squares - mean_squares + C2))


def _blur(maps: Tensor, axis: int) -> Tensor:
    """The window along one axis, at its valid positions."""
    length = maps.shape[axis] - WINDOW + 1
    result = maps.narrow(axis, 0, length) * WEIGHTS[0]
    for tap in range(1, WINDOW):
        result.add_(maps.narrow(axis, tap, length), alpha=WEIGHTS[tap])
    return result


def _gaussian() -> list[float]:
    values = [math.exp(-((tap - WINDOW // 2) ** 2) / (2 * SIGMA**2)) for tap in range(WINDOW)]
    return [value / math.fsum(values) for value in values]


WEIGHTS = _gaussian()
