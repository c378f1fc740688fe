"""Tars without an index -> micro-batches, by WebDataset's pipeline: `data.reader: webdataset`.

    tars in a new order per pass --its splitters--> those of this rank and worker --tar_stream--> samples
    samples --its shuffle buffer--> bytes --decode, crop--> Crops, as from an index

Passes follow each other for ever, and a rank that has read its tars begins its next pass. Crops and flips are keyed by
(seed, pass, key of the sample), so they do not depend on the order in which samples come.
"""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from sr_dist.core import ranks
from sr_dist.core.batch import Batch
from sr_dist.core.child_processes import without_count_of_cores
from sr_dist.core.errors import UserError, first_line
from sr_dist.core.passwords import without_passwords
from sr_dist.core.pixels import open_image
from sr_dist.data.crops import Crops, Substitution
from sr_dist.data.format import HR_SUFFIXES, NO_CLASS, ShardError
from sr_dist.data.jpeg_rows import stated_size
from sr_dist.data.loader import Loader, _receive, _set_up_worker, _unchanged
from sr_dist.data.order import CROP, DEGRADE, SHARDS, TURN, crop_corner, draw, micro_batch, permutation
from sr_dist.data.reader import JPEG, NO_ATTRIBUTES, Square, decode, decode_square, hwc
from sr_dist.data.shared_batches import SharedBatches
from sr_dist.data.tar_stream import samples
from sr_dist.data.unindexed import INDEX, UnindexedTars

LEAST_BUFFER = 256  # samples that a worker shuffles, if data.window divided among all workers is fewer
FIRST_BUFFER = 1000  # samples that are read before the first one is used; the buffer grows from that


class TarLoader(Loader):
    """A `Loader` of tars without an index."""

    @property
    def samples(self) -> int:
        """As `data.samples` states it; 0 if nobody knows."""
        return self.data.samples or 0

    def crop_steps(self, first: int) -> Iterator[tuple[int, list[Crops]]]:
        self._fetch_log.start(first, 0.0)
        self._step = first - 1
        shared = self._shared_batches()
        with without_count_of_cores():
            batches = DataLoader(
                self._stream(shared),
                batch_size=None,
                collate_fn=_unchanged,
                num_workers=self.data.workers,
                prefetch_factor=self._prefetch_factor if self.data.workers else None,
                worker_init_fn=_set_up_worker,
            )
            self._batches = iter(batches)
        for step in range(first, self.config.steps + 1):
            self._step = step
            yield step, [_receive(next(self._batches), shared) for _ in range(self.accumulate)]

    def first_batches(self, count: int) -> list[Batch]:
        """The first samples of this rank's tars, one per batch."""
        stream = self._stream(None, micro_batches=(1,), buffer=1)
        with closing(stream.__iter__()) as batches:
            return [self._to_batch(_receive(crops)) for crops in islice(batches, count)]

    def describe_failure(self, error: Exception) -> Exception:
        if "DataLoader worker" not in str(error):
            return error
        return RuntimeError(f"a data worker died ({first_line(error)}) after step {self._step}")

    def _stream(self, shared: SharedBatches | None, micro_batches: tuple[int, ...] = (), buffer: int = 0) -> TarCrops:
        tars = self.source.data_sets[0].reader.shards
        assert isinstance(tars, UnindexedTars)
        size, accumulate = ranks.size(), self.accumulate
        shares = [len(micro_batch(self.data.batch, size, accumulate, ranks.rank(), micro)) for micro in range(accumulate)]
        return TarCrops(
            tars.urls, self.config.seed, self.position_after(self._step), micro_batches or tuple(shares),
            buffer or max(self.data.window // (size * max(self.data.workers, 1)), LEAST_BUFFER),
            Cutter(self.source.channels, self.data.crop, self.config.scale, self.data.small == "replicate"),
            self.source.substitute, shared,
        )  # fmt: skip


@dataclass(frozen=True)
class Cutter:
    """Files -> HR crops."""

    channels: int
    crop: int | None
    scale: int
    replicate: bool  # the edges of smaller images

    def __call__(self, data: bytearray, bits: int) -> np.ndarray:
        """(H, W, C) uint8. Raises a RuntimeError for what cannot be decoded or is too small."""
        height, width = size = self._size(data)
        if not self.crop:
            self._check(size, self.scale)
            return hwc(decode(data, self.channels))[: height // self.scale * self.scale, : width // self.scale * self.scale]
        if not self.replicate:
            self._check(size, self.crop)
        top, left = crop_corner(bits, max(height, self.crop), max(width, self.crop), self.crop, self.scale)
        return decode_square(data, self.channels, size, Square(top, left, self.crop))

    def _size(self, data: bytearray) -> tuple[int, int]:
        """(height, width) from the header."""
        if data[:2] == JPEG and (size := stated_size(data)):
            return size
        try:
            with open_image(io.BytesIO(data)) as image:
                return image.height, image.width
        except Exception as error:  # decoders raise errors of many types
            raise RuntimeError(first_line(error)) from None

    @staticmethod
    def _check(size: tuple[int, int], least: int) -> None:
        if min(size) < least:
            raise RuntimeError(f"{size[1]} x {size[0]} pixels, fewer than {least} on a side; data.small=replicate repeats edges")


@dataclass
class TarCrops(IterableDataset[Crops | UserError]):
    """The micro-batches of one rank, without end. A worker makes every `workers`th of them, from tars of its own."""

    urls: tuple[str, ...]
    seed: int
    start: int  # the position of the run, so that a continued run takes the tars in another order
    micro_batches: tuple[int, ...]  # the images of each micro-batch of a step
    buffer: int
    cut: Cutter
    substitute: bool
    shared: SharedBatches | None

    def __iter__(self) -> Generator[Crops | UserError, None, None]:
        worker = get_worker_info()
        first, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        images = self._images()
        try:
            for number in count(first, workers):
                yield self._batch(list(islice(images, self.micro_batches[number % len(self.micro_batches)])))
        except UserError as error:  # returned, because an exception raised in a worker arrives as a long traceback
            yield error
        finally:
            images.close()

    def _batch(self, images: list[Image]) -> Crops:
        slot = self.shared.next_slot(len(images)) if self.shared else None
        arrays = self.shared.arrays(slot) if self.shared and slot else [np.stack([image.hr for image in images])]
        if slot:
            np.stack([image.hr for image in images], out=arrays[0])
        return Crops(
            images=slot or arrays,
            turn=np.array([image.bits[1] >> 1 for image in images], np.int64),
            seed=np.array([image.bits[2] >> 1 for image in images], np.int64),
            label=np.full(len(images), NO_CLASS, np.int64),
            keys=tuple(image.key for image in images),
            attributes=np.stack([NO_ATTRIBUTES] * len(images)),
            substitutions=tuple(row for image in images for row in image.substitutions),
        )

    def _images(self) -> Generator[Image, None, None]:
        """The readable images. Those that are not end the run, or are recorded with the next readable one."""
        problems: list[tuple[str, str]] = []  # keys, or addresses of tars, and reasons
        for number in count():
            empty = True
            for sample in self._pass(number, problems):
                key, member = sample["__key__"], next((name for name in HR_SUFFIXES if name in sample), None)
                if any(name.startswith("lr.") for name in sample):
                    raise UserError(f"data.train: '{key}' has an LR image, which data.reader=webdataset does not read; {INDEX}")
                if not member:
                    continue
                empty, bits = False, self._bits(number, key)
                try:
                    hr = self.cut(bytearray(sample[member]), bits[0])
                except RuntimeError as error:
                    self._note(problems, f"{sample['__url__']} {key}", first_line(error))
                    continue
                yield Image(key, hr, bits, [Substitution(name, key, reason) for name, reason in problems])
                problems.clear()
            if empty:
                names = ", ".join(f"KEY.{suffix}" for suffix in HR_SUFFIXES)
                raise UserError(f"data.train: a worker has no image in its tars ({names}) {self._reasons(problems)}".rstrip())

    def _pass(self, number: int, problems: list[tuple[str, str]]) -> Iterator[dict[str, Any]]:
        """The samples of this worker's tars, once each."""
        import webdataset as wds  # takes long to import

        seed = int(draw(self.seed % 2**64, self.start, number, SHARDS))
        order = permutation(len(self.urls), seed, number, SHARDS)  # the same on all ranks
        reader = ranks.rank() * 2**16 + (worker.id if (worker := get_worker_info()) else 0)
        return iter(
            wds.DataPipeline(
                wds.SimpleShardList([self.urls[i] for i in order.tolist()]),
                wds.split_by_node,
                wds.split_by_worker,
                lambda urls: self._members(urls, problems),
                wds.shuffle(self.buffer, initial=min(self.buffer, FIRST_BUFFER), rng=random.Random(seed + reader)),
            )
        )

    def _members(self, urls: Iterator[dict[str, str]], problems: list[tuple[str, str]]) -> Iterator[dict[str, Any]]:
        """The samples of tars. A tar that ends early is damaged, where that can be known."""
        for source in urls:
            try:
                yield from samples(source["url"])
            except ShardError as error:
                self._note(problems, source["url"], first_line(error))

    def _note(self, problems: list[tuple[str, str]], name: str, reason: str) -> None:
        problems.append((without_passwords(name), reason))
        if not self.substitute:
            raise UserError(
                f"data.train: {self._reasons(problems)}; data.on_corrupt=substitute takes the next image in place of such ones"
            )

    @staticmethod
    def _reasons(problems: list[tuple[str, str]]) -> str:
        return "; ".join(f"'{name}': {reason}" for name, reason in problems[:3])

    def _bits(self, number: int, key: str) -> tuple[int, int, int]:
        """64 random bits each for the place of the crop, the flips and turns, and the degradation."""
        sample = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
        crop, turn, degrade = (int(draw(self.seed % 2**64, self.start + number, sample, use)) for use in (CROP, TURN, DEGRADE))
        return crop, turn, degrade


class Image(NamedTuple):
    """A crop, or a whole image, with the samples that it takes the place of."""

    key: str
    hr: np.ndarray
    bits: tuple[int, int, int]
    substitutions: list[Substitution]
