"""The order of the samples: a pure function of (seed, epoch, shard sizes). It has no state and needs no torch.

A run reads an endless sequence of positions. Position g is sample g % N of epoch g // N. Step t with global batch size B
takes the positions [(t-1)B, tB), for any number of ranks, micro-batches and workers; a batch may straddle two epochs.
So every sample occurs exactly once per epoch, and the state of the data is one number.

    an epoch:   shards, permuted ──split──> windows of several thousand samples ──permuted within──> the order

Permutations sort raw Philox output, which is the same in every numpy version. Generator.permutation may change.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

# Uses of random numbers. The use is part of the key, so different uses get independent numbers.
SHARDS, SAMPLES, CROP, TURN, DEGRADE, NOISE, DATASET = range(7)

Number = int | np.ndarray


def permutation(size: int, seed: int, epoch: int, use: int, window: int = 0) -> np.ndarray:
    """A permutation of range(size), determined by the arguments."""
    key = np.array([seed % 2**64, epoch], np.uint64)
    counter = np.array([0, 0, window, use], np.uint64)
    draws = np.random.Philox(key=key, counter=counter).random_raw(size)
    order = np.argsort(draws)  # vectorized: a ninth of the time of the stable sort, and the same order of different numbers
    ordered = draws[order]
    return np.argsort(draws, kind="stable") if (ordered[1:] == ordered[:-1]).any() else order


def split_range(total: int, pieces: int, piece: int) -> range:
    """One piece of range(total), which is split into consecutive pieces. Their sizes differ by one at most."""
    return range(total * piece // pieces, total * (piece + 1) // pieces)


class Order:
    """Positions -> samples of one data set. Samples are numbered by shard in manifest order, then by row in tar order.

    `sizes` are the numbers of samples per shard. Memory use is a few numbers per shard, plus the windows in use.
    """

    def __init__(self, sizes: Sequence[int], seed: int, window: int) -> None:
        self.sizes = np.asarray(sizes, np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)])  # the first sample of each shard
        self.samples = int(self.starts[-1])
        self.seed, self.window = seed, window
        assert self.samples > 0 and window > 0
        self._epoch = lru_cache(maxsize=2)(self._shard_order)
        self._window = lru_cache(maxsize=4)(self._window_order)

    def __reduce__(self) -> tuple[type[Order], tuple[np.ndarray, int, int]]:
        return Order, (self.sizes, self.seed, self.window)  # without the caches

    def at(self, position: int) -> tuple[int, int]:
        """(epoch, sample) of one position."""
        epoch, offset = divmod(position, self.samples)
        return epoch, int(self._window(epoch, offset // self.window)[0][offset % self.window])

    def locate(self, sample: int) -> tuple[int, int]:
        """(shard, row) of a sample."""
        shard = int(self.starts.searchsorted(sample, side="right")) - 1
        return shard, sample - int(self.starts[shard])

    def shards_at(self, positions: range) -> np.ndarray:
        """The shard of each of consecutive positions."""
        pieces, position = [np.empty(0, np.int64)], positions.start
        while position < positions.stop:
            epoch, offset = divmod(position, self.samples)
            window, place = divmod(offset, self.window)
            pieces.append(self._window(epoch, window)[1][place : place + positions.stop - position])
            position += len(pieces[-1])
        return np.concatenate(pieces)

    def shards_from(self, position: int) -> Iterator[tuple[int, int]]:
        """(shard, first position that may need it) for ever, in order. All shards of a window have the same position."""
        first, offset = divmod(position, self.samples)
        for epoch in itertools.count(first):
            shards, begins = self._epoch(epoch)
            window = offset // self.window * self.window if epoch == first else 0
            for shard, begin, end in zip(shards.tolist(), begins[:-1].tolist(), begins[1:].tolist(), strict=True):
                if end > max(begin, window):
                    yield shard, epoch * self.samples + begin // self.window * self.window

    def _shard_order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards of an epoch in order, and the offset in the epoch at which each begins."""
        shards = permutation(len(self.sizes), self.seed, epoch, SHARDS)
        return shards, np.concatenate([[0], np.cumsum(self.sizes[shards])])

    def _window_order(self, epoch: int, window: int) -> tuple[np.ndarray, np.ndarray]:
        """The samples of one window, shuffled, and their shards. A shard that straddles two windows belongs to both in part."""
        shards, begins = self._epoch(epoch)
        low, high = window * self.window, min((window + 1) * self.window, self.samples)
        first, last = np.searchsorted(begins, [low, high - 1], side="right") - 1
        inside, begins = shards[first : last + 1], begins[first : last + 2]
        counts = np.diff(np.clip(begins, low, high))
        samples = np.arange(low, high) + np.repeat(self.starts[inside] - begins[:-1], counts)
        order = permutation(high - low, self.seed, epoch, SAMPLES, window)
        return samples[order], np.repeat(inside, counts)[order]


class Mix:
    """Positions of the run -> (data set, position in it). A pattern that spaces each data set evenly repeats for ever:

        position = q * sum(weights) + r  ->  data set pattern[r]; its position advances by its weight with every q

    So every data set has its own epochs, and the position of the run determines the positions in all data sets.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        self.weights = tuple(weights)
        turns = [(Fraction(2 * k + 1, 2 * weight), number, k) for number, weight in enumerate(weights) for k in range(weight)]
        self.pattern = [(number, k) for _, number, k in sorted(turns)]
        self._offsets = {turn: r for r, turn in enumerate(self.pattern)}

    def __call__(self, position: int) -> tuple[int, int]:
        q, r = divmod(position, len(self.pattern))
        number, k = self.pattern[r]
        return number, q * self.weights[number] + k

    def data_sets_at(self, positions: range) -> np.ndarray:
        """The data set of each of consecutive positions. In each data set they are consecutive as well."""
        numbers = np.array([number for number, _ in self.pattern])
        return numbers[np.arange(positions.start, positions.stop) % len(numbers)]

    def position(self, number: int, local: int) -> int:
        """The position of the run for a position in a data set: the inverse of a call."""
        q, k = divmod(local, self.weights[number])
        return q * len(self.pattern) + self._offsets[number, k]

    def first_from(self, number: int, position: int) -> int:
        """The first position in a data set that is read at this position of the run or later."""
        q, r = divmod(position, len(self.pattern))
        return q * self.weights[number] + sum(other == number for other, _ in self.pattern[:r])


def seed_of(seed: int, number: int) -> int:
    """The seed of a data set. Data sets of a run are shuffled independently; the first one as if it were alone."""
    return draw(seed, number, 0, DATASET) if number else seed


def piece_bounds(total: int, pieces: int) -> np.ndarray:
    """Where the pieces of `split_range` begin, and the end of the last one."""
    return total * np.arange(pieces + 1) // pieces


def micro_batch(batch: int, ranks: int, accumulate: int, rank: int, micro: int) -> range:
    """The indices in a global batch that one rank takes in one micro-batch. Sizes differ by one at most."""
    return split_range(batch, ranks * accumulate, micro * ranks + rank)


def home_node(shard: Number, nodes: int) -> Any:
    """The node that caches a shard, in every epoch."""
    return shard % nodes


def draw(seed: Number, epoch: Number, sample: Number, use: Number) -> Any:
    """64 random bits for one use of one sample in one epoch: splitmix64 over the four numbers.

    The arguments are integers, or arrays of uint64 that numpy broadcasts.
    """
    state: Any = 0
    for number in (seed, epoch, sample, use):
        state = (state ^ (number & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state


_MASK = 2**64 - 1


def crop_corner(bits: int, height: int, width: int, crop: int, grid: int) -> tuple[int, int]:
    """(top, left) of a crop. Both are multiples of `grid`, the scale, so stored LR can be cropped at the same place."""
    rows, columns = (height - crop) // grid + 1, (width - crop) // grid + 1
    return (bits & 0xFFFFFFFF) % rows * grid, (bits >> 32) % columns * grid
