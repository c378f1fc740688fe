"""Shards -> micro-batches: the order's positions become bytes, uint8 crops, and batches on the device.

    position g --order--> (epoch, sample) --index--> bytes --crc32, decode, crop--> uint8 HR     in workers
    uint8 HR --flip, turn, vary, degrade--> Batch(lr, hr, label, keys, attributes)               on the device, in batches

A worker gets paths, never arrays; what it does depends on positions alone, so any number of workers does the same.
"""

from __future__ import annotations

import io
import os
import signal
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.io import ImageReadMode, decode_image  # here, for W&B watches imports and fails in a forked worker

from sr_dist import ranks
from sr_dist.batch import Batch
from sr_dist.data import augment
from sr_dist.data.format import Index, ShardError, Shards, attribute_values
from sr_dist.data.order import CROP, DEGRADE, TURN, Order, crop_place, draw, micro_batch
from sr_dist.data.select import Portion, portion_rows
from sr_dist.errors import UserError, first_line


class Crops(NamedTuple):
    """What leaves a worker: one micro-batch, still bytes and random numbers."""

    hr: Tensor  # (B, C, H, W) uint8
    lr: Tensor | None  # (B, C, h, w) uint8, where the shards store it
    turn: Tensor  # (B,) 64 random bits each, for flips and quarter turns
    seed: Tensor  # (B,) 64 random bits each, for the degradation
    label: Tensor  # (B,)
    keys: tuple[str, ...]
    attributes: Tensor  # (B, A) of 0 and 1, in the manifest's order


class ShardReader:
    """Members of shards by (shard, row): pread through a bounded set of open files, checked at every read."""

    OPEN_FILES = 64

    def __init__(self, shards: Shards) -> None:
        self.shards = shards
        self._files: OrderedDict[int, int] = OrderedDict()
        self._indexes: OrderedDict[int, Index] = OrderedDict()  # a mapped file is an open one

    def __reduce__(self) -> tuple:
        return ShardReader, (self.shards,)  # open files and maps stay in their process

    def index(self, shard: int) -> Index:
        if shard not in self._indexes:
            if len(self._indexes) >= self.OPEN_FILES:
                self._indexes.popitem(last=False)
            self._indexes[shard] = self.shards.index(shard)
        self._indexes.move_to_end(shard)
        return self._indexes[shard]

    def key(self, shard: int, row: int) -> str:
        return self.index(shard)["key"][row].decode()

    def attributes(self, shard: int, row: int) -> np.ndarray:
        """(A,) of 0 and 1, in the manifest's order."""
        return attribute_values(self.index(shard)["attributes"][row : row + 1], len(self.shards.manifest.attributes))[0]

    def read(self, shard: int, row: int, member: str) -> bytes:
        """The bytes of one member ("hr" or "lr"); empty where there is none."""
        index = self.index(shard)
        size, offset = int(index[f"{member}_bytes"][row]), int(index[f"{member}_offset"][row])
        data = os.pread(self._file(shard), size, offset) if size else b""
        if len(data) != size or (size and zlib.crc32(data) != int(index[f"{member}_crc32"][row])):
            raise ShardError(
                f"'{self.shards.paths()[shard]}': the {member} image of '{self.key(shard, row)}' does not match its checksum; "
                f"'python -m shards.verify {self.shards.folder}' finds what else is damaged"
            )
        return data

    def image(self, shard: int, row: int, member: str, channels: int) -> Tensor | None:
        """(C, H, W) uint8, or None where the member does not exist."""
        data = self.read(shard, row, member)
        if not data:
            return None
        try:
            return decode(data, channels)
        except RuntimeError as problem:
            where = f"'{self.shards.paths()[shard]}': '{self.key(shard, row)}'"
            raise ShardError(f"{where} cannot be decoded: {first_line(problem)}") from None

    def _file(self, shard: int) -> int:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        if len(self._files) >= self.OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        path = self.shards.paths()[shard]
        try:
            self._files[shard] = os.open(path, os.O_RDONLY)
        except OSError as problem:
            raise ShardError(f"the shard '{path}' cannot be opened: {problem.strerror}") from None
        return self._files[shard]


def decode(data: bytes, channels: int) -> Tensor:
    """JPEG, PNG or WebP bytes -> (C, H, W) uint8 with 1 or 3 channels; a RuntimeError says why it cannot be.

    torchvision is fastest for JPEG; its PNG reader ends the whole process on damaged pixels, so Pillow reads the others.
    """
    if data[:2] == b"\xff\xd8":
        mode = ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB
        return decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode)
    try:
        with Image.open(io.BytesIO(data)) as image:
            return to_tensor(image, channels)
    except (OSError, SyntaxError, ValueError, zlib.error) as problem:
        raise RuntimeError(first_line(problem)) from None


def to_tensor(image: Image.Image, channels: int) -> Tensor:
    """A Pillow image -> (C, H, W) uint8; 16 bits become 8."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image, np.int32) / 257 + 0.5).clip(0, 255).astype(np.uint8))
    pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1).contiguous()


@dataclass
class CropSource(Dataset):
    """Positions -> Crops. Everything random is keyed by (seed, epoch, sample)."""

    reader: ShardReader
    seed: int
    scale: int
    crop: int | None
    channels: int
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

    def __getitem__(self, positions: range) -> Crops | UserError:
        try:
            samples = [self._sample(epoch, sample) for epoch, sample in self.order(positions)]
        except UserError as mistake:  # handed over, for a raise in a worker arrives as a page of traceback
            return mistake
        hr, lr, turn, seed, label, keys, attributes = zip(*samples, strict=True)
        stored = torch.stack(lr) if lr[0] is not None else None
        bits = torch.tensor([turn, seed], dtype=torch.int64)
        facts = torch.from_numpy(np.stack(attributes))
        return Crops(torch.stack(hr), stored, bits[0], bits[1], torch.tensor(label), keys, facts)

    def key(self, position: int) -> str:
        """The name of the sample at a position."""
        ((_, sample),) = self.order([position])
        return self.reader.key(*self._place(sample))

    def _place(self, sample: int) -> tuple[int, int]:
        shard, row = self.order.locate(sample)
        return shard, row if self.rows is None else int(self.rows[shard][row])

    def _sample(self, epoch: int, sample: int) -> tuple:
        shard, row = self._place(sample)
        hr = self.reader.image(shard, row, "hr", self.channels)
        lr = self.reader.image(shard, row, "lr", self.channels)
        assert hr is not None
        bits = draw(self.seed, epoch, sample, CROP)
        hr, lr = augment.crop_pair(hr, lr, self.crop, self.scale, lambda h, w, size: crop_place(bits, h, w, size, self.scale))
        # 63 bits: torch has no unsigned 64.
        turn, seed = (draw(self.seed, epoch, sample, use) >> 1 for use in (TURN, DEGRADE))
        label = int(self.reader.index(shard)["class"][row])
        return hr, lr, turn, seed, label, self.reader.key(shard, row), self.reader.attributes(shard, row)


@dataclass(frozen=True)
class Positions(Sampler):
    """The positions of every micro-batch of one rank, from a step on. Resuming is starting at another number."""

    start: int  # the position of the first one
    steps: int
    batch: int
    accumulate: int
    rank: int
    world: int

    def __iter__(self) -> Iterator[range]:
        for start in range(self.start, self.start + self.steps * self.batch, self.batch):
            for micro in range(self.accumulate):
                places = micro_batch(self.batch, self.world, self.accumulate, self.rank, micro)
                yield range(start + places.start, start + places.stop)


class Stream:
    """The training data of one rank, from a position on. `steps(first)` yields (step, its micro-batches) up to the last."""

    def __init__(
        self, shards: Shards, settings: Any, *, seed: int, scale: int, accumulate: int, steps: int, channels: int,
        degrade: Callable[[Tensor, Tensor], Tensor], device: torch.device,
        channels_last: bool = False, position: int | None = None,
    ) -> None:  # fmt: skip
        self.settings, self.steps_to_do, self.device, self.degrade, self.scale = settings, steps, device, degrade, scale
        # Whole images have sizes of their own, so each is a micro-batch.
        self.accumulate = accumulate if settings.crop else settings.batch // ranks.size()
        reader = ShardReader(shards)
        self._arriving: Any = None
        self._wanted: list[range] = []  # the positions of the step in hand
        self.channels_last = channels_last
        self.position = position  # where the data stand before the first step; by default where that step of a new run is
        self._first = 1
        self.source = CropSource(reader, seed, scale, settings.crop, channels, settings.window, settings.portion(0))

    @property
    def samples(self) -> int:
        return self.source.order.samples

    def steps(self, first: int) -> Iterator[tuple[int, list[Batch]]]:
        steps = self.steps_to_do - first + 1
        self._first = first
        if self.position is None:
            self.position = (first - 1) * self.settings.batch
        positions = Positions(self.position, steps, self.settings.batch, self.accumulate, ranks.rank(), ranks.size())
        loader = DataLoader(
            self.source,
            sampler=positions,
            batch_size=None,  # a "sample" of the loader is a whole micro-batch
            num_workers=self.settings.workers,
            prefetch_factor=2 * self.accumulate if self.settings.workers else None,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_leave_signals_to_the_rank,
        )
        self._arriving = iter(loader)
        for step, micro in zip(range(first, self.steps_to_do + 1), self._in_step(positions), strict=True):
            self._wanted = micro
            yield step, [self._on_device(next(self._arriving)) for _ in range(self.accumulate)]

    def _in_step(self, positions: Positions) -> Iterator[list[range]]:
        wanted = iter(positions)
        while micro := list(islice(wanted, self.accumulate)):
            yield micro

    def explained(self, problem: Exception) -> Exception:
        """A loading process that died, at whatever moment torch noticed it, as an error that names what was being read."""
        if "DataLoader worker" not in str(problem):
            return problem
        keys = ", ".join(f"'{self.source.key(position)}'" for micro in self._wanted for position in micro)
        return RuntimeError(f"a loading process died ({first_line(problem)}); the samples of this step were {keys}")

    def position_after(self, step: int) -> int:
        """Where the data stand after a step: all that is to be remembered of them."""
        return (self.position or 0) + (step - self._first + 1) * self.settings.batch

    def close(self) -> None:
        """Ends the workers. They ignore the signals that a dying process would end them with, so it must be done."""
        if hasattr(self._arriving, "_shutdown_workers"):
            self._arriving._shutdown_workers()
        self._arriving = None

    def preview(self, count: int) -> list[Batch]:
        """The first samples of the order one by one: pictures to look at where there is no validation set."""
        return [self._on_device(self.source[range(place, place + 1)]) for place in range(min(count, self.samples))]

    def _on_device(self, crops: Crops | UserError) -> Batch:
        if isinstance(crops, UserError):
            raise crops
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        hr = augment.to_float(crops.hr.to(self.device, non_blocking=True)).contiguous(memory_format=layout)
        lr = None if crops.lr is None else augment.to_float(crops.lr.to(self.device, non_blocking=True))
        turn, seed = crops.turn.to(self.device), crops.seed.to(self.device)
        hr = augment.turned(hr, turn, self.settings.flip, self.settings.rotate)
        hr = augment.varied(hr, turn, self.settings.augment)
        lr = self.degrade(hr, seed) if lr is None else augment.turned(lr, turn, self.settings.flip, self.settings.rotate)
        names = self.source.reader.shards.manifest.attributes
        attributes = dict(zip(names, crops.attributes.to(self.device).float().unbind(1), strict=True))
        return Batch(lr.contiguous(memory_format=layout), hr, crops.label.to(self.device), tuple(crops.keys), attributes)


def _leave_signals_to_the_rank(worker: int) -> None:
    """A cluster sends its signals to every process; the rank decides, and its workers end with it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
