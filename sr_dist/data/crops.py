"""Positions -> uint8 crops: what a loading process does. It gets paths and opens them itself, and everything random is keyed
by the sample, so any number of processes does the same.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, get_worker_info

from sr_dist.core.errors import UserError
from sr_dist.data.format import ShardError
from sr_dist.data.order import CROP, DEGRADE, TURN, Mix, Order, crop_place, draw, micro_batch, near_home, share
from sr_dist.data.reader import ShardReader, Square
from sr_dist.data.select import Portion, portion_rows
from sr_dist.data.shared_batches import Ring, Slot


class Replaced(NamedTuple):
    """A sample that cannot be read, the one that came in its place, and why."""

    wanted: str
    taken: str
    why: str


class Facts(NamedTuple):
    """What is known of the images of a micro-batch."""

    turn: np.ndarray  # (B,) 63 random bits each, for flips and quarter turns; small arrays travel faster than tensors
    seed: np.ndarray  # (B,) 63 random bits each, for the degradation
    label: np.ndarray  # (B,)
    keys: tuple[str, ...]
    attributes: np.ndarray  # (B, A) of 0 and 1, in the manifest's order
    replaced: tuple[Replaced, ...]


class Crops(NamedTuple):
    """One micro-batch, still bytes and random numbers."""

    hr: Tensor  # (B, C, H, W) uint8
    lr: Tensor | None  # (B, C, h, w) uint8, where the shards store it
    facts: Facts


class Handed(NamedTuple):
    """The same from a loading process."""

    images: Slot | list[np.ndarray]  # in the ring, or themselves; torch would send what opens memory of their own
    facts: Facts


def crops_of(images: Sequence[Tensor], facts: Facts) -> Crops:
    """(B, H, W, C) of HR and, where it is stored, of LR."""
    hr, lr = (*(part.permute(0, 3, 1, 2) for part in images), None)[:2]
    return Crops(hr, lr, facts)


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
        epoch, sample = self.order.at(position)
        shard, row = self.order.locate(sample)
        return epoch, sample, shard, row if self.rows is None else int(self.rows[shard][row])

    def crops(self, shard: int, row: int, channels: int, crop: int, scale: int, bits: int) -> list[np.ndarray]:
        """Corresponding crops of HR and, where it is stored, LR, (H, W, C) each."""
        height, width = (max(side, crop) for side in self.reader.size(shard, row, "hr"))
        top, left = crop_place(bits, height, width, crop, scale)
        hr = self.reader.square(shard, row, "hr", channels, Square(top, left, crop))
        lr = self.reader.square(shard, row, "lr", channels, Square(top // scale, left // scale, crop // scale))
        return [image for image in (hr, lr) if image is not None]

    def whole(self, shard: int, row: int, channels: int, scale: int) -> list[np.ndarray]:
        """The same without a crop: HR loses what does not divide by the scale."""
        hr, lr = (self.reader.image(shard, row, member, channels) for member in ("hr", "lr"))
        assert hr is not None
        height, width = (side // scale * scale for side in hr.shape[1:])
        return [image.permute(1, 2, 0).numpy() for image in (hr[:, :height, :width], lr) if image is not None]


class Place(NamedTuple):
    """Where a position of the run leads."""

    part: Samples
    inner: int  # position in its order
    epoch: int
    sample: int
    shard: int
    row: int


@dataclass
class CropSource(Dataset):
    """Positions -> Crops. Everything random is keyed by (seed of the data set, epoch, sample)."""

    parts: Sequence[Samples]
    mix: Mix
    scale: int
    crop: int | None
    channels: int
    substitute: bool = False  # take the next sample of the data set for one that cannot be read
    ring: Ring | None = None  # for loading processes, where all crops have one size

    @property
    def samples(self) -> int:
        return sum(part.order.samples for part in self.parts)

    def __getitem__(self, positions: Sequence[int]) -> Crops | Handed | UserError:
        try:
            if self.ring:
                slot = self.ring.next(len(positions))
                return Handed(slot, self._together(positions, self.ring.images(slot))[1])
            images, facts = self._together(positions)
            return Handed([part.numpy() for part in images], facts) if get_worker_info() else crops_of(images, facts)
        except UserError as mistake:  # handed over, for a raise in a worker arrives as a page of traceback
            return mistake

    def _together(self, positions: Sequence[int], rooms: Sequence[Tensor] = ()) -> tuple[Sequence[Tensor], Facts]:
        """Images, in these rooms if there are any, and what is known of them. Each is copied at once, so that one after the
        other is decoded into the same hot memory.
        """
        places = [self._place(position) for position in positions]
        bits = _bits(places)
        arrays, sources = [room.numpy() for room in rooms], []
        for i, (place, crop_bits) in enumerate(zip(places, bits[:, 0].tolist(), strict=True)):
            images, *source = self._images(place, crop_bits)
            if not rooms:
                rooms = [torch.empty((len(places), *image.shape), dtype=torch.uint8) for image in images]
                arrays = [room.numpy() for room in rooms]
            for array, image in zip(arrays, images, strict=True):
                array[i] = image
            sources.append(source)
        return rooms, _facts(places, bits, sources)

    def key(self, position: int) -> str:
        """The name of the sample at a position."""
        place = self._place(position)
        return place.part.reader.key(place.shard, place.row)

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

    def _place(self, position: int) -> Place:
        number, inner = self.mix(position)
        return Place(self.parts[number], inner, *self.parts[number].at(inner))

    def _images(self, place: Place, bits: int) -> tuple[list[np.ndarray], int, int, Replaced | None]:
        """HR and LR, the shard and row that they are of, and what they replace."""
        part, _, _, _, shard, row = place
        try:
            return self._read(part, shard, row, bits), shard, row, None
        except ShardError as problem:
            if not self.substitute:
                raise
            return self._next_readable(place, bits, problem)

    def _next_readable(self, place: Place, bits: int, first: ShardError) -> tuple[list[np.ndarray], int, int, Replaced]:
        """The first sample after a place of a data set that can be read: the same one in every process."""
        part, reader = place.part, place.part.reader
        for inner in range(place.inner + 1, place.inner + 2 * part.order.samples):  # all of the next epoch is in it
            *_, shard, row = part.at(inner)
            with suppress(ShardError):
                images = self._read(part, shard, row, bits)
                wanted, taken = reader.key(place.shard, place.row), reader.key(shard, row)
                return images, shard, row, Replaced(wanted, taken, str(first))
        raise first

    def _read(self, part: Samples, shard: int, row: int, bits: int) -> list[np.ndarray]:
        if self.crop is None:
            return part.whole(shard, row, self.channels, self.scale)
        return part.crops(shard, row, self.channels, self.crop, self.scale, bits)


def _facts(places: Sequence[Place], bits: np.ndarray, sources: Sequence[Sequence[Any]]) -> Facts:
    at = [(place.part.reader, shard, row) for place, (shard, row, _) in zip(places, sources, strict=True)]
    return Facts(
        turn=(bits[:, 1] >> 1).astype(np.int64),  # 63 bits: torch has no unsigned 64
        seed=(bits[:, 2] >> 1).astype(np.int64),
        label=np.array([reader.label(shard, row) for reader, shard, row in at], np.int64),
        keys=tuple(reader.key(shard, row) for reader, shard, row in at),
        attributes=np.stack([reader.attributes(shard, row) for reader, shard, row in at]),
        replaced=tuple(swap for *_, swap in sources if swap),
    )


def _bits(places: Sequence[Place]) -> np.ndarray:
    """(B, 3) random bits for where each crop lies, how it is turned, how it is degraded."""
    seeds, epochs, samples = np.array([(p.part.seed % 2**64, p.epoch, p.sample) for p in places], np.uint64).T[..., None]
    return draw(seeds, epochs, samples, np.array([CROP, TURN, DEGRADE], np.uint64))


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
