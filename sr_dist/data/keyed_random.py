"""Random numbers on the device, keyed by sample: hashes, no generator. They are the same alone, in any batch, on any rank."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Draws:
    """Random numbers of each sample, by its seed and by the count of the draws before. Every draw is made for all."""

    def __init__(self, seeds: Tensor) -> None:
        self.seeds, self.drawn = _mixed(seeds), 0

    def pixels(self, *shape: int) -> Tensor:
        """(B, *shape), uniform in [0, 1)."""
        self.drawn += 1
        places = torch.arange(math.prod(shape), device=self.seeds.device)
        keys = _mixed(self.seeds + _signed(self.drawn * GOLDEN))[:, None] + places * _signed(GOLDEN)
        return (_shifted(_mixed(keys), 11).double() / 2**53).view(-1, *shape)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """(B,)"""
        return low + (high - low) * self.pixels(1)[:, 0]

    def chance(self, probability: float) -> Tensor:
        return self.uniform() < probability

    def choice(self, weights: Sequence[float]) -> Tensor:
        """(B,) places in the list, as often as their weights say."""
        borders = torch.tensor(weights, dtype=torch.float64, device=self.seeds.device).cumsum(0)
        return (self.uniform()[:, None] * borders[-1] >= borders[:-1]).sum(1)

    def normal(self, *shape: int) -> Tensor:
        """(B, *shape), Box and Muller's."""
        return torch.sqrt(-2 * torch.log1p(-self.pixels(*shape))) * torch.cos(2 * math.pi * self.pixels(*shape))


GOLDEN = 0x9E3779B97F4A7C15


def _signed(number: int) -> int:
    """64 bits as torch has them: with a sign."""
    return (number + 2**63) % 2**64 - 2**63


def _shifted(x: Tensor, by: int) -> Tensor:
    return x >> by & (1 << 64 - by) - 1


def _mixed(x: Tensor) -> Tensor:
    """splitmix64"""
    x = x + _signed(GOLDEN)
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)
