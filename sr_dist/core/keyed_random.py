"""Random numbers on the device, keyed by sample. They are hashes, so a sample gets the same ones in any batch and on any rank."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sr_dist.core.constants import numbers

AHEAD = 64  # draws of one number each are hashed so many at a time: a hash is a dozen kernels, however many numbers it makes


class Draws:
    """Random numbers determined by the seed of each sample and by the number of earlier draws. All samples draw together."""

    def __init__(self, seeds: Tensor) -> None:
        self.seeds, self.num_draws = _hash(seeds), 0
        self._ahead: Sequence[Tensor] = ()
        self._first = 1  # number of the draw that `_ahead` begins with

    def pixels(self, *shape: int) -> Tensor:
        """(B, *shape), uniform in [0, 1)."""
        self.num_draws += 1
        pixels = torch.arange(math.prod(shape), device=self.seeds.device)
        keys = _hash(self.seeds + _to_signed(self.num_draws * GOLDEN))[:, None] + pixels * _to_signed(GOLDEN)
        return _fractions(keys).view(-1, *shape)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """(B,), the first of the `pixels` of this draw."""
        self.num_draws += 1
        if self.num_draws >= self._first + len(self._ahead):
            self._first = self.num_draws
            numbers_of = torch.arange(self._first, self._first + AHEAD, device=self.seeds.device)[:, None]
            self._ahead = _fractions(_hash(self.seeds + numbers_of * _to_signed(GOLDEN))).unbind()
        fractions = self._ahead[self.num_draws - self._first]
        return fractions if (low, high) == (0, 1) else low + (high - low) * fractions

    def chance(self, probability: float) -> Tensor:
        """(B,) bool, true with this probability."""
        return self.uniform() < probability

    def choice(self, weights: Sequence[float]) -> Tensor:
        """(B,) indices into `weights`, with probabilities in proportion to the weights."""
        borders = numbers(tuple(weights), torch.float64, self.seeds.device).cumsum(0)
        return (self.uniform()[:, None] * borders[-1] >= borders[:-1]).sum(1)

    def normal(self, *shape: int) -> Tensor:
        """(B, *shape), normal with mean 0 and variance 1, by the Box-Muller method."""
        return torch.sqrt(-2 * torch.log1p(-self.pixels(*shape))) * torch.cos(2 * math.pi * self.pixels(*shape))


GOLDEN = 0x9E3779B97F4A7C15


def _to_signed(number: int) -> int:
    """The lowest 64 bits as a signed number, because torch has no unsigned ones."""
    return (number + 2**63) % 2**64 - 2**63


def _shift_right(x: Tensor, by: int) -> Tensor:
    """A logical shift: torch's own copies the sign."""
    return x >> by & (1 << 64 - by) - 1


def _fractions(keys: Tensor) -> Tensor:
    """In [0, 1), of 53 bits."""
    return _shift_right(_hash(keys), 11).double() / 2**53


def _hash(x: Tensor) -> Tensor:
    """splitmix64"""
    x = x + _to_signed(GOLDEN)
    x = (x ^ _shift_right(x, 30)) * _to_signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _to_signed(0x94D049BB133111EB)
    return x ^ _shift_right(x, 31)
