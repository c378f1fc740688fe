"""Which sample comes when: a pure function of (seed, epoch, sizes of the shards). No state, no torch.

The run is one endless row of positions. Position g is sample g % N of epoch g // N; step t of global batch B takes the
positions [(t-1)B, tB), whatever the number of ranks, micro-batches or workers, and batches may straddle epochs. So every
sample comes exactly once per epoch, and the state of the data is one number.

    an epoch:   shards, permuted ──cut──> windows of some thousand samples ──permuted inside──> the order

Permutations sort raw Philox output, whose bits never change between numpy versions (Generator.permutation may).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

# What a random number is for; part of its key, so that uses do not repeat each other.
SHARDS, SAMPLES, CROP, TURN, DEGRADE, NOISE, DATASET = range(7)

Number = int | np.ndarray


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

    def __init__(self, sizes: Sequence[int], seed: int, window: int) -> None:
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
        return [self.at(int(position)) for position in positions]

    def at(self, position: int) -> tuple[int, int]:
        """(epoch, sample) of one position."""
        epoch, place = divmod(position, self.samples)
        return epoch, int(self._window(epoch, place // self.window)[place % self.window])

    def locate(self, sample: int) -> tuple[int, int]:
        """(shard, row) of a sample."""
        shard = int(self.starts.searchsorted(sample, side="right")) - 1
        return shard, sample - int(self.starts[shard])

    def shards_from(self, position: int) -> Iterator[tuple[int, int]]:
        """(shard, position from which it may be needed), endlessly, in the order of need: those of a window come at once."""
        first, place = divmod(position, self.samples)
        for epoch in itertools.count(first):
            shards, begins = self._epoch(epoch)
            window = place // self.window * self.window if epoch == first else 0
            for shard, begin, end in zip(shards.tolist(), begins[:-1].tolist(), begins[1:].tolist(), strict=True):
                if end > max(begin, window):
                    yield shard, epoch * self.samples + begin // self.window * self.window

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


class Mix:
    """Positions of the run -> (data set, position in it). A pattern that spreads each data set evenly repeats for ever:

        position = q * sum(weights) + r  ->  data set pattern[r], whose positions go on by its weight with every q

    So every data set has epochs of its own, and where each of them stands follows from one number.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        self.weights = tuple(weights)
        turns = [(Fraction(2 * k + 1, 2 * weight), number, k) for number, weight in enumerate(weights) for k in range(weight)]
        self.pattern = [(number, k) for _, number, k in sorted(turns)]
        self._places = {turn: place for place, turn in enumerate(self.pattern)}

    def __call__(self, position: int) -> tuple[int, int]:
        q, r = divmod(position, len(self.pattern))
        number, k = self.pattern[r]
        return number, q * self.weights[number] + k

    def position(self, number: int, inner: int) -> int:
        """Where in the run a position of a data set is: the inverse."""
        q, k = divmod(inner, self.weights[number])
        return q * len(self.pattern) + self._places[number, k]

    def first_from(self, number: int, position: int) -> int:
        """The first position in a data set that comes at this position of the run or later."""
        q, r = divmod(position, len(self.pattern))
        return q * self.weights[number] + sum(which == number for which, _ in self.pattern[:r])


def seed_of(seed: int, number: int) -> int:
    """Data sets of one run are mixed independently; the first as it would be alone."""
    return draw(seed, number, 0, DATASET) if number else seed


def micro_batch(batch: int, ranks: int, accumulate: int, rank: int, micro: int) -> range:
    """The places in a global batch that one rank takes in one micro-batch. Sizes differ by one where they must."""
    return share(batch, ranks * accumulate, micro * ranks + rank)


def home(shard: int, nodes: int) -> int:
    """The node whose cache a shard belongs to, in every epoch."""
    return shard % nodes


def near_home(shards: Sequence[int], quotas: Sequence[int], node_of: Sequence[int]) -> list[list[int]]:
    """Places of a stretch of the batch -> the places of every rank, where `shards[place]` is the shard that a place reads.

    Each rank gets exactly its quota. A node takes places of its own shards first; what is too much for it goes to the next
    node that has room, and it is always the shards with the highest numbers that give away, so that few are fetched twice.
    """
    nodes = max(node_of) + 1
    room = [sum(quota for quota, at in zip(quotas, node_of, strict=True) if at == node) for node in range(nodes)]
    assert sum(room) == len(shards)
    taken: list[list[int]] = [[] for _ in range(nodes)]
    by_shard = sorted(range(len(shards)), key=lambda place: (shards[place], place))
    away: list[int] = []
    for place in by_shard:
        node = home(shards[place], nodes)
        (taken[node] if len(taken[node]) < room[node] else away).append(place)
    for place in away:
        after = home(shards[place], nodes)
        node = next(n % nodes for n in range(after, after + nodes) if len(taken[n % nodes]) < room[n % nodes])
        taken[node].append(place)
    left = [iter(sorted(places)) for places in taken]
    return [list(itertools.islice(left[node], quota)) for quota, node in zip(quotas, node_of, strict=True)]


def draw(seed: Number, epoch: Number, sample: Number, use: Number) -> Any:
    """64 random bits for one use of one sample in one epoch (splitmix64 over the four numbers); of numbers, or of arrays of
    unsigned ones that numpy can broadcast.
    """
    state: Any = 0
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
