"""Positions -> uint8 crops: the work of a worker. A worker receives paths and opens the files itself. All random numbers are
keyed by the sample, so the result does not depend on the number of workers.
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

from sr_dist.core.errors import UserError
from sr_dist.data.format import ShardError
from sr_dist.data.order import CROP, DEGRADE, TURN, Mix, Order, assign_near_home, crop_corner, draw, micro_batch, split_range
from sr_dist.data.reader import ShardReader, Square
from sr_dist.data.select import Portion, portion_rows
from sr_dist.data.shared_batches import SharedBatches, Slot


class Substitution(NamedTuple):
    """The key of an unreadable sample, the key of the sample that replaces it, and the reason."""

    wanted: str
    taken: str
    why: str


class Crops(NamedTuple):
    """One micro-batch as bytes and random numbers. Small arrays are sent between processes faster than tensors."""

    images: Slot | Sequence[np.ndarray]  # HR and, where it is stored, LR: (B, H, W, C) uint8; a worker sends their slot
    turn: np.ndarray  # (B,) 63 random bits each, for flips, quarter turns and data.augment
    seed: np.ndarray  # (B,) 63 random bits each, for the degradation and for losses that draw
    label: np.ndarray  # (B,)
    keys: tuple[str, ...]
    attributes: np.ndarray  # (B, A) of 0 and 1, in the manifest's order
    substitutions: tuple[Substitution, ...]

    @property
    def hr(self) -> Tensor:
        """(B, C, H, W) uint8"""
        assert not isinstance(self.images, Slot)
        return torch.from_numpy(self.images[0]).permute(0, 3, 1, 2)

    @property
    def lr(self) -> Tensor | None:
        """(B, C, h, w) uint8, or None where the shards store no LR."""
        assert not isinstance(self.images, Slot)
        return torch.from_numpy(self.images[1]).permute(0, 3, 1, 2) if len(self.images) > 1 else None


class Sample(NamedTuple):
    """A sample of a data set in one epoch."""

    epoch: int
    number: int
    shard: int
    row: int


@dataclass
class DataSet:
    """One data set in its order."""

    reader: ShardReader
    seed: int
    window: int
    portion: Portion

    @cached_property
    def rows(self) -> list[np.ndarray] | None:
        """The selected rows of each shard, or None for all of them."""
        return None if self.portion == Portion() else portion_rows(self.reader.shards, self.portion)

    @cached_property
    def order(self) -> Order:
        shards = self.reader.shards.manifest.shards
        sizes = [len(rows) for rows in self.rows] if self.rows is not None else [shard.samples for shard in shards]
        return Order(sizes, self.seed, self.window)

    def at(self, position: int) -> Sample:
        """The sample at a position in the order."""
        epoch, number = self.order.at(position)
        shard, row = self.order.locate(number)
        return Sample(epoch, number, shard, row if self.rows is None else int(self.rows[shard][row]))

    def crops(self, sample: Sample, channels: int, crop: int, scale: int, bits: int) -> list[np.ndarray]:
        """Corresponding crops of HR and, where it is stored, LR, (H, W, C) each. `bits` determine the place."""
        shard, row = sample.shard, sample.row
        height, width = (max(side, crop) for side in self.reader.size(shard, row, "hr"))
        top, left = crop_corner(bits, height, width, crop, scale)
        hr = self.reader.square(shard, row, "hr", channels, Square(top, left, crop))
        lr = self.reader.square(shard, row, "lr", channels, Square(top // scale, left // scale, crop // scale))
        return [image for image in (hr, lr) if image is not None]

    def whole_images(self, sample: Sample, channels: int, scale: int) -> list[np.ndarray]:
        """HR and, where it is stored, LR, (H, W, C) each. HR loses the rows and columns beyond a multiple of the scale."""
        hr, lr = (self.reader.image(sample.shard, sample.row, member, channels) for member in ("hr", "lr"))
        assert hr is not None
        height, width = (side // scale * scale for side in hr.shape[1:])
        return [image.permute(1, 2, 0).numpy() for image in (hr[:, :height, :width], lr) if image is not None]


class Location(NamedTuple):
    """The sample at a position of the run."""

    data_set: DataSet
    position: int  # in the data set
    sample: Sample

    @property
    def key(self) -> str:
        return self.data_set.reader.key(self.sample.shard, self.sample.row)


class ShardNeed(NamedTuple):
    """The first position of the run that needs a shard."""

    position: int
    data_set: int
    shard: int  # in the data set
    number: int  # over all data sets


@dataclass
class CropSource(Dataset[Crops | UserError]):
    """Positions -> Crops. All random numbers are keyed by (seed of the data set, epoch, sample)."""

    data_sets: Sequence[DataSet]
    mix: Mix
    scale: int
    crop: int | None
    channels: int
    substitute: bool = False  # read the next sample of the data set in place of an unreadable one
    shared: SharedBatches | None = None  # for workers, where all crops have the same size

    @property
    def samples(self) -> int:
        return sum(data_set.order.samples for data_set in self.data_sets)

    def __getitem__(self, positions: Sequence[int]) -> Crops | UserError:
        try:
            return self._read_batch(positions)
        except UserError as error:  # returned, because an exception raised in a worker arrives as a long traceback
            return error

    def _read_batch(self, positions: Sequence[int]) -> Crops:
        """Copies each image into the batch at once, so that the next one is decoded into the same cached memory."""
        locations = [self._locate(position) for position in positions]
        bits = _random_bits(locations)
        slot = self.shared.next_slot(len(positions)) if self.shared else None
        arrays = self.shared.arrays(slot) if self.shared and slot else []
        substitutions = []
        for i, crop_bits in enumerate(bits[:, 0].tolist()):
            images, locations[i], substitution = self._read(locations[i], crop_bits)
            if not arrays:
                arrays = [np.empty((len(positions), *image.shape), np.uint8) for image in images]
            for array, image in zip(arrays, images, strict=True):
                array[i] = image
            substitutions += [substitution] if substitution else []
        samples = [(location.data_set.reader, location.sample.shard, location.sample.row) for location in locations]
        return Crops(
            images=slot or arrays,
            turn=(bits[:, 1] >> 1).astype(np.int64),  # 63 bits: torch has no unsigned 64
            seed=(bits[:, 2] >> 1).astype(np.int64),
            label=np.array([reader.label(shard, row) for reader, shard, row in samples], np.int64),
            keys=tuple(reader.key(shard, row) for reader, shard, row in samples),
            attributes=np.stack([reader.attributes(shard, row) for reader, shard, row in samples]),
            substitutions=tuple(substitutions),
        )

    def key(self, position: int) -> str:
        """The key of the sample at a position."""
        return self._locate(position).key

    def shards(self, positions: np.ndarray) -> np.ndarray:
        """The shard that each position reads, numbered over all data sets."""
        numbers, locals_ = self.mix.split(positions)
        result, before = np.empty(len(positions), np.int64), 0
        for number, data_set in enumerate(self.data_sets):
            inside = numbers == number
            result[inside] = before + data_set.order.shards_at(locals_[inside])
            before += len(data_set.order.sizes)
        return result

    def shard_needs(self, position: int) -> Iterator[ShardNeed]:
        """The shards that are read from a position on, in the order of need."""

        def needs_of(number: int, before: int) -> Iterator[ShardNeed]:
            for shard, local in self.data_sets[number].order.shards_from(self.mix.first_from(number, position)):
                yield ShardNeed(self.mix.position(number, local), number, shard, before + shard)

        counts = [len(data_set.order.sizes) for data_set in self.data_sets]
        return heapq.merge(*(needs_of(number, sum(counts[:number])) for number in range(len(counts))))

    def _locate(self, position: int) -> Location:
        number, local = self.mix(position)
        data_set = self.data_sets[number]
        return Location(data_set, local, data_set.at(local))

    def _read(self, location: Location, bits: int) -> tuple[list[np.ndarray], Location, Substitution | None]:
        """HR and LR, and the location that they were read from."""
        try:
            return self._images(location, bits), location, None
        except ShardError as error:
            if not self.substitute:
                raise
            return self._next_readable(location, bits, error)

    def _next_readable(self, start: Location, bits: int, error: ShardError) -> tuple[list[np.ndarray], Location, Substitution]:
        """The next readable sample of the data set: the same one in every process."""
        data_set = start.data_set
        for local in range(start.position + 1, start.position + 2 * data_set.order.samples):  # includes all of the next epoch
            location = Location(data_set, local, data_set.at(local))
            with suppress(ShardError):
                images = self._images(location, bits)
                return images, location, Substitution(start.key, location.key, str(error))
        raise error

    def _images(self, location: Location, bits: int) -> list[np.ndarray]:
        if self.crop is None:
            return location.data_set.whole_images(location.sample, self.channels, self.scale)
        return location.data_set.crops(location.sample, self.channels, self.crop, self.scale, bits)


def _random_bits(locations: Sequence[Location]) -> np.ndarray:
    """(B, 3) random bits: for the place of the crop, the flips and turns, and the degradation."""
    numbers = [(data_set.seed % 2**64, sample.epoch, sample.number) for data_set, _, sample in locations]
    seeds, epochs, samples = np.array(numbers, np.uint64).T[..., None]
    return draw(seeds, epochs, samples, np.array([CROP, TURN, DEGRADE], np.uint64))


@dataclass(frozen=True)
class Positions(Sampler[Sequence[int]]):
    """The positions of every micro-batch of one rank. A resumed run begins at another `start`."""

    start: int  # the position of the first step
    steps: int
    batch: int
    accumulate: int
    rank: int
    num_ranks: int
    node_of: Sequence[int] = ()  # the node of every rank; with several nodes, ranks take samples that their own node caches
    shards: Callable[[np.ndarray], np.ndarray] | None = None  # the shard of each position

    def __iter__(self) -> Iterator[Sequence[int]]:
        for start in range(self.start, self.start + self.steps * self.batch, self.batch):
            yield from self.step(start)

    def step(self, start: int) -> Iterator[Sequence[int]]:
        """The micro-batches of the step that begins at position `start`."""
        for micro in range(self.accumulate):
            if self.shards and len(set(self.node_of)) > 1:
                yield self._near_home(start, micro, self.shards)
            else:
                indices = micro_batch(self.batch, self.num_ranks, self.accumulate, self.rank, micro)
                yield range(start + indices.start, start + indices.stop)

    def _near_home(self, start: int, micro: int, shards: Callable[[np.ndarray], np.ndarray]) -> list[int]:
        """The positions of a micro-batch of all ranks that are assigned to this rank."""
        positions = start + np.array(split_range(self.batch, self.accumulate, micro))
        quotas = [len(micro_batch(self.batch, self.num_ranks, self.accumulate, rank, micro)) for rank in range(self.num_ranks)]
        return positions[assign_near_home(shards(positions), quotas, self.node_of)[self.rank]].tolist()
