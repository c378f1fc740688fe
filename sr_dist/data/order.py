"""Which sample comes when: a pure function of (seed, epoch, sizes of the shards). No state, no torch.

The run is one endless row of positions. Position g is sample g % N of epoch g // N; step t of global batch B takes the
positions [(t-1)B, tB), whatever the number of ranks, micro-batches or workers, and batches may straddle epochs. So every
sample comes exactly once per epoch, and the state of the data is one number.

    an epoch:   shards, permuted ──cut──> windows of some thousand samples ──permuted inside──> the order

Permutations sort raw Philox output, whose bits never change between numpy versions (Generator.permutation may).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

WINDOW = 8192  # samples that are mixed together; a window's shards are what a node must hold at one time

# What a random number is for; part of its key, so that uses do not repeat each other.
SHARDS, SAMPLES, CROP, TURN, DEGRADE, NOISE = range(6)


def permutation(size: int, seed: int, epoch: int, use: int, part: int = 0) -> np.ndarray:
    """A permutation of range(size) that depends on its arguments alone."""
    key = np.array([seed % 2**64, epoch], np.uint64)
    counter = np.array([0, 0, part, use], np.uint64)
    return np.argsort(np.random.Philox(key=key, counter=counter).random_raw(size), kind="stable")


def share(total: int, parts: int, part: int) -> range:
    """Part `part` of `total` things cut into consecutive parts whose sizes differ by one at most."""
    return range(total * part // parts, total * (part + 1) // parts)


class Order:
    """Positions -> samples, for one dataset. A sample is named by its number: shards in manifest order, rows in tar order.

    `sizes` are the samples per shard. Memory is a few numbers per shard and one window.
    """

    def __init__(self, sizes: Sequence[int], seed: int, window: int = WINDOW) -> None:
        self.sizes = np.asarray(sizes, np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)])  # number of each shard's first sample
        self.samples = int(self.starts[-1])
        self.seed, self.window = seed, window
        assert self.samples > 0 and window > 0
        self._epoch = lru_cache(maxsize=2)(self._shard_order)
        self._window = lru_cache(maxsize=4)(self._window_order)

    def __reduce__(self) -> tuple:
        return Order, (self.sizes, self.seed, self.window)  # caches stay behind when a worker gets its copy

    def __call__(self, positions: Sequence[int] | range) -> list[tuple[int, int]]:
        """(epoch, sample) of each position."""
        return [self._at(int(position)) for position in positions]

    def locate(self, sample: int) -> tuple[int, int]:
        """(shard, row) of a sample."""
        shard = int(np.searchsorted(self.starts, sample, side="right")) - 1
        return shard, sample - int(self.starts[shard])

    def _at(self, position: int) -> tuple[int, int]:
        epoch, place = divmod(position, self.samples)
        return epoch, int(self._window(epoch, place // self.window)[place % self.window])

    def _shard_order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's shards in order, and the place at which each begins."""
        shards = permutation(len(self.sizes), self.seed, epoch, SHARDS)
        return shards, np.concatenate([[0], np.cumsum(self.sizes[shards])])

    def _window_order(self, epoch: int, window: int) -> np.ndarray:
        """The samples of one window, mixed. A shard that lies across a border gives part of itself to either side."""
        shards, begins = self._epoch(epoch)
        low, high = window * self.window, min((window + 1) * self.window, self.samples)
        first, last = np.searchsorted(begins, [low, high - 1], side="right") - 1
        pieces = [
            self.starts[shards[i]] + np.arange(max(low, begins[i]) - begins[i], min(high, begins[i + 1]) - begins[i])
            for i in range(int(first), int(last) + 1)
        ]
        return np.concatenate(pieces)[permutation(high - low, self.seed, epoch, SAMPLES, window)]


def micro_batch(batch: int, ranks: int, accumulate: int, rank: int, micro: int) -> range:
    """The places in a global batch that one rank takes in one micro-batch. Sizes differ by one where they must."""
    return share(batch, ranks * accumulate, micro * ranks + rank)


def draw(seed: int, epoch: int, sample: int, use: int) -> int:
    """64 random bits for one use of one sample in one epoch (splitmix64 over the four numbers)."""
    state = 0
    for number in (seed, epoch, sample, use):
        state = (state ^ (number & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state


_MASK = 2**64 - 1


def crop_place(bits: int, height: int, width: int, crop: int, grid: int) -> tuple[int, int]:
    """(top, left) of a crop, on the grid of the scale so that stored LR can be cropped at the corresponding place."""
    rows, columns = (height - crop) // grid + 1, (width - crop) // grid + 1
    return (bits & 0xFFFFFFFF) % rows * grid, (bits >> 32) % columns * grid
