"""Positions -> uint8 crops: what a loading process does. It gets paths, never arrays, and everything random is keyed by the
sample, so any number of processes does the same.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from sr_dist.data import augment
from sr_dist.data.format import ShardError
from sr_dist.data.order import CROP, DEGRADE, TURN, Mix, Order, crop_place, draw, micro_batch, near_home, share
from sr_dist.data.reader import ShardReader
from sr_dist.data.select import Portion, portion_rows
from sr_dist.errors import UserError


class Replaced(NamedTuple):
    """A sample that cannot be read, the one that came in its place, and why."""

    wanted: str
    taken: str
    why: str


class Crops(NamedTuple):
    """What leaves a worker: one micro-batch, still bytes and random numbers."""

    hr: Tensor  # (B, C, H, W) uint8
    lr: Tensor | None  # (B, C, h, w) uint8, where the shards store it
    turn: np.ndarray  # (B,) 63 random bits each, for flips and quarter turns; small arrays travel faster than tensors
    seed: np.ndarray  # (B,) 63 random bits each, for the degradation
    label: np.ndarray  # (B,)
    keys: tuple[str, ...]
    attributes: np.ndarray  # (B, A) of 0 and 1, in the manifest's order
    replaced: tuple[Replaced, ...] = ()


@dataclass
class Samples:
    """One data set in its order."""

    reader: ShardReader
    seed: int
    window: int
    portion: Portion

    @cached_property
    def rows(self) -> list[np.ndarray] | None:
        everything = self.portion == Portion()
        return None if everything else portion_rows(self.reader.shards, self.portion)

    @cached_property
    def order(self) -> Order:
        shards = self.reader.shards.manifest.shards
        sizes = [len(rows) for rows in self.rows] if self.rows is not None else [shard.samples for shard in shards]
        return Order(sizes, self.seed, self.window)

    def at(self, position: int) -> tuple[int, int, int, int]:
        """(epoch, sample, shard, row)"""
        ((epoch, sample),) = self.order([position])
        shard, row = self.order.locate(sample)
        return epoch, sample, shard, row if self.rows is None else int(self.rows[shard][row])


@dataclass
class CropSource(Dataset):
    """Positions -> Crops. Everything random is keyed by (seed of the data set, epoch, sample)."""

    parts: Sequence[Samples]
    mix: Mix
    scale: int
    crop: int | None
    channels: int
    substitute: bool = False  # take the next sample of the data set for one that cannot be read

    @property
    def samples(self) -> int:
        return sum(part.order.samples for part in self.parts)

    def __getitem__(self, positions: Sequence[int]) -> Crops | UserError:
        try:
            return self._together(positions)
        except UserError as mistake:  # handed over, for a raise in a worker arrives as a page of traceback
            return mistake

    def _together(self, positions: Sequence[int]) -> Crops:
        """Each crop is copied at once, so that one image after the other is decoded into the same hot memory."""
        rest, hr_batch, lr_batch = [], None, None
        for place, position in enumerate(positions):
            hr, lr, *about = self._sample(position)
            rest.append(about)
            if hr_batch is None:
                hr_batch, lr_batch = _room(len(positions), hr), None if lr is None else _room(len(positions), lr)
            hr_batch[place] = hr
            if lr_batch is not None:
                lr_batch[place] = lr
        turn, seed, label, keys, attributes, replaced = zip(*rest, strict=True)
        bits, degraded, labels = (np.array(column, np.int64) for column in (turn, seed, label))
        assert hr_batch is not None
        return Crops(
            hr_batch, lr_batch, bits, degraded, labels, keys, np.stack(attributes), tuple(swap for swap in replaced if swap)
        )

    def key(self, position: int) -> str:
        """The name of the sample at a position."""
        part, inner = self._part(position)
        _, _, shard, row = part.at(inner)
        return part.reader.key(shard, row)

    def shard(self, position: int) -> int:
        """The shard that a position reads, counted over all data sets."""
        number, inner = self.mix(position)
        before = sum(len(part.order.sizes) for part in self.parts[:number])
        return before + self.parts[number].at(inner)[2]

    def needs(self, position: int) -> Iterator[tuple[int, int, int, int]]:
        """(position from which it is wanted, data set, shard in it, shard counted over all), in the order of need."""

        def of(number: int, before: int) -> Iterator[tuple[int, int, int, int]]:
            for shard, inner in self.parts[number].order.shards_from(self.mix.first_from(number, position)):
                yield self.mix.position(number, inner), number, shard, before + shard

        counts = [len(part.order.sizes) for part in self.parts]
        return heapq.merge(*(of(number, sum(counts[:number])) for number in range(len(counts))))

    def _part(self, position: int) -> tuple[Samples, int]:
        number, inner = self.mix(position)
        return self.parts[number], inner

    def _sample(self, position: int) -> tuple:
        part, inner = self._part(position)
        epoch, sample, shard, row = part.at(inner)
        replaced = None
        try:
            hr, lr = self._images(part, shard, row)
        except ShardError as problem:
            if not self.substitute:
                raise
            wanted = part.reader.key(shard, row)
            hr, lr, shard, row = self._next_readable(part, inner, problem)
            replaced = Replaced(wanted, part.reader.key(shard, row), str(problem))
        bits = draw(part.seed, epoch, sample, CROP)
        hr, lr = augment.crop_pair(hr, lr, self.crop, self.scale, lambda h, w, size: crop_place(bits, h, w, size, self.scale))
        # 63 bits: torch has no unsigned 64.
        turn, seed = (draw(part.seed, epoch, sample, use) >> 1 for use in (TURN, DEGRADE))
        label = int(part.reader.index(shard)["class"][row])
        return hr, lr, turn, seed, label, part.reader.key(shard, row), part.reader.attributes(shard, row), replaced

    def _images(self, part: Samples, shard: int, row: int) -> tuple[Tensor, Tensor | None]:
        hr, lr = (part.reader.image(shard, row, member, self.channels) for member in ("hr", "lr"))
        assert hr is not None
        return hr, lr

    def _next_readable(self, part: Samples, inner: int, first: ShardError) -> tuple[Tensor, Tensor | None, int, int]:
        """The first sample after a position of a data set that can be read: the same one in every process."""
        for place in range(inner + 1, inner + 2 * part.order.samples):  # all of the next epoch is in it
            *_, shard, row = part.at(place)
            with suppress(ShardError):
                return *self._images(part, shard, row), shard, row
        raise first


def _room(count: int, image: Tensor) -> Tensor:
    """For so many images (C, H, W), with the colours of a pixel side by side in memory as decoders leave them."""
    channels, height, width = image.shape
    return torch.empty(count, height, width, channels, dtype=image.dtype).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Positions(Sampler):
    """The positions of every micro-batch of one rank, from a step on. Resuming is starting at another number."""

    start: int  # the position of the first one
    steps: int
    batch: int
    accumulate: int
    rank: int
    world: int
    node_of: Sequence[int] = ()  # of every rank; then ranks take what lies in their own node's cache
    shard: Callable[[int], int] | None = None  # of a position

    def __iter__(self) -> Iterator[Sequence[int]]:
        for start in range(self.start, self.start + self.steps * self.batch, self.batch):
            yield from self.step(start)

    def step(self, start: int) -> Iterator[Sequence[int]]:
        """The micro-batches of the step that begins there."""
        for micro in range(self.accumulate):
            if self.shard and len(set(self.node_of)) > 1:
                yield self._near(start, micro, self.shard)
            else:
                places = micro_batch(self.batch, self.world, self.accumulate, self.rank, micro)
                yield range(start + places.start, start + places.stop)

    def _near(self, start: int, micro: int, shard: Callable[[int], int]) -> list[int]:
        """Of the stretch that all ranks together take in a micro-batch, what is near this one."""
        stretch = [start + place for place in share(self.batch, self.accumulate, micro)]
        quotas = [len(micro_batch(self.batch, self.world, self.accumulate, rank, micro)) for rank in range(self.world)]
        return [stretch[i] for i in near_home([shard(place) for place in stretch], quotas, self.node_of)[self.rank]]
