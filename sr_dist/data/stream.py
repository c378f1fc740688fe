"""Shards -> micro-batches: the order's positions become bytes, uint8 crops, and batches on the device.

    position g --order--> (epoch, sample) --index--> bytes --crc32, decode, crop--> uint8 HR     in workers
    uint8 HR --flip, turn, vary, degrade--> Batch(lr, hr, label, keys, attributes)               on the device, in batches

A worker gets paths, never arrays; what it does depends on positions alone, so any number of workers does the same.
Where shards are elsewhere, they are fetched into the node's cache as they are needed, and a thread fetches ahead.
"""

from __future__ import annotations

import heapq
import io
import json
import logging
import os
import signal
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
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
from sr_dist.data.ahead import Ahead, Need
from sr_dist.data.format import Index, ShardError, Shards, attribute_values
from sr_dist.data.order import (
    CROP,
    DEGRADE,
    TURN,
    Mix,
    Order,
    crop_place,
    draw,
    home,
    micro_batch,
    near_home,
    seed_of,
    share,
    whole_weights,
)
from sr_dist.data.remote import RemoteShards
from sr_dist.data.select import Portion, portion_rows
from sr_dist.errors import UserError, first_line

logger = logging.getLogger("sr_dist")


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


class ShardReader:
    """Members of shards by (shard, row): pread through a bounded set of open files, checked at every read."""

    OPEN_FILES = 64

    def __init__(self, shards: Shards) -> None:
        self.shards = shards
        self._files: OrderedDict[int, int] = OrderedDict()
        self._indexes: OrderedDict[int, Index] = OrderedDict()  # a mapped file is an open one
        self._lost: dict[int, ShardError] = {}  # shards that cannot be opened
        self._renewed: set[int] = set()  # shards whose copy was damaged and made again

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

    def read(self, shard: int, row: int, member: str) -> bytearray:
        """The bytes of one member ("hr" or "lr"); empty where there is none."""
        data = self._bytes(shard, row, member)
        if data is None and shard not in self._renewed and self.shards.forget(shard):
            self._renewed.add(shard)
            os.close(self._files.pop(shard))
            data = self._bytes(shard, row, member)
        if data is None:
            raise self._damaged(shard, f"the {member} image of '{self.key(shard, row)}' does not match its checksum")
        return data

    def image(self, shard: int, row: int, member: str, channels: int) -> Tensor | None:
        """(C, H, W) uint8, or None where the member does not exist."""
        data = self.read(shard, row, member)
        if not data:
            return None
        try:
            return decode(data, channels)
        except RuntimeError as problem:
            raise self._damaged(shard, f"'{self.key(shard, row)}' cannot be decoded: {first_line(problem)}") from None

    def _bytes(self, shard: int, row: int, member: str) -> bytearray | None:
        """What lies where the index says, or None if it is something else."""
        index = self.index(shard)
        size = int(index[f"{member}_bytes"][row])
        if not size:
            return bytearray()
        data = bytearray(size)
        right = os.preadv(self._file(shard), [data], int(index[f"{member}_offset"][row])) == size
        return data if right and zlib.crc32(data) == int(index[f"{member}_crc32"][row]) else None

    def _damaged(self, shard: int, what: str) -> ShardError:
        folder = self.shards.folder
        return ShardError(f"'{self.shards.where(shard)}': {what}; 'python -m shards.verify {folder}' finds what else is damaged")

    def _file(self, shard: int) -> int:
        if shard in self._lost:  # asking again would take as long as the first time
            raise self._lost[shard]
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        if len(self._files) >= self.OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        try:
            self._files[shard] = self.shards.open(shard)
        except ShardError as problem:
            self._lost[shard] = problem
            raise
        except OSError as problem:
            self._lost[shard] = self._damaged(shard, f"cannot be opened: {problem.strerror}")
            raise self._lost[shard] from None
        return self._files[shard]


def decode(data: bytes | bytearray, channels: int) -> Tensor:
    """JPEG, PNG or WebP bytes -> (C, H, W) uint8 with 1 or 3 channels; a RuntimeError says why it cannot be.

    torchvision is fastest for JPEG; its PNG reader ends the whole process on damaged pixels, so Pillow reads the others.
    """
    if data[:2] == b"\xff\xd8":
        mode = ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB
        return decode_image(torch.frombuffer(data if isinstance(data, bytearray) else bytearray(data), dtype=torch.uint8), mode)
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


def _room(count: int, image: Tensor) -> Tensor:
    """For so many images (C, H, W), with the colours of a pixel side by side in memory as decoders leave them."""
    channels, height, width = image.shape
    return torch.empty(count, height, width, channels, dtype=image.dtype).permute(0, 3, 1, 2)


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


class Stream:
    """The training data of one rank, from a position on. `steps(first)` yields (step, its micro-batches) up to the last.

    `shards` are data sets, mixed as `settings.weights` say. `folder` is where it writes down what it fetched and what it
    replaced. All ranks must make one where shards are fetched.
    """

    def __init__(
        self, shards: Sequence[Shards], settings: Any, *, seed: int, scale: int, accumulate: int, steps: int, channels: int,
        degrade: Callable[[Tensor, Tensor], Tensor], device: torch.device,
        channels_last: bool = False, position: int | None = None, folder: Path | None = None,
    ) -> None:  # fmt: skip
        self.settings, self.steps_to_do, self.device, self.degrade, self.scale = settings, steps, device, degrade, scale
        # Whole images have sizes of their own, so each is a micro-batch.
        self.accumulate = accumulate if settings.crop else settings.batch // ranks.size()
        self.channels_last, self.folder = channels_last, folder
        self.position = position  # where the data stand before the first step; by default where that step of a new run is
        self._first = 1
        self._arriving: Any = None
        self._ahead: Ahead | None = None
        self._wanted: list[Sequence[int]] = []  # the positions of the step in hand
        self._replaced = 0  # by this rank, and by those of earlier processes for the first rank
        self._told: dict[str, int] = {}  # bytes that each node had fetched when they were last said,
        self._told_at = 0  # and the position then
        self.remote = any(isinstance(part, RemoteShards) for part in shards)
        self.node_of = ranks.nodes() if self.remote else [0] * ranks.size()
        parts = [
            Samples(ShardReader(self._noted(part)), seed_of(seed, number), settings.window, settings.portion(0))
            for number, part in enumerate(shards)
        ]
        mix = Mix(whole_weights(settings.weights))
        self.source = CropSource(parts, mix, scale, settings.crop, channels, settings.on_corrupt == "substitute")

    @property
    def samples(self) -> int:
        """Of all data sets together; as many images are called an epoch of the run."""
        return self.source.samples

    def steps(self, first: int) -> Iterator[tuple[int, list[Batch]]]:
        for step, crops in self.crops(first):
            self._note_replaced(step, crops)
            yield step, [self._on_device(part) for part in crops]
            self._say_traffic(step)

    def crops(self, first: int) -> Iterator[tuple[int, list[Crops]]]:
        """The same as it comes from the loading processes."""
        self._first = first
        if self.position is None:
            self.position = (first - 1) * self.settings.batch
        self._replaced, self._told, self._told_at = self._replaced_before(), self._fetched(), self.position
        positions = self._positions(self.position, self.steps_to_do - first + 1)
        loader = DataLoader(
            self.source,
            sampler=positions,
            batch_size=None,  # a "sample" of the loader is a whole micro-batch
            collate_fn=_as_it_is,
            num_workers=self.settings.workers,
            prefetch_factor=2 * self.accumulate if self.settings.workers else None,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_leave_signals_to_the_rank,
        )
        self._arriving = iter(loader)
        self._ahead = self._fetching_ahead(self.position)  # after the loading processes were forked: it is a thread
        for step in range(first, self.steps_to_do + 1):
            start = self.position + (step - first) * self.settings.batch
            self._wanted = list(positions.step(start))
            if self._ahead:
                self._ahead.reached(start)
            yield step, [self._received(next(self._arriving)) for _ in range(self.accumulate)]

    def _positions(self, start: int, steps: int) -> Positions:
        shard = self.source.shard if self.remote else None
        here = (ranks.rank(), ranks.size(), self.node_of)
        return Positions(start, steps, self.settings.batch, self.accumulate, *here, shard)

    def _received(self, crops: Crops | UserError) -> Crops:
        if isinstance(crops, UserError):
            raise crops
        return crops

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
        if self._ahead:
            self._ahead.close()
        if hasattr(self._arriving, "_shutdown_workers"):
            self._arriving._shutdown_workers()
        self._arriving = None

    def preview(self, count: int) -> list[Batch]:
        """The first samples of the order one by one: pictures to look at where there is no validation set."""
        places = range(min(count, self.samples))
        return [self._on_device(self._received(self.source[range(place, place + 1)])) for place in places]

    def _on_device(self, crops: Crops) -> Batch:
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        flip, rotate = self.settings.flip, self.settings.rotate
        turn, seed, label = (torch.from_numpy(numbers).to(self.device) for numbers in (crops.turn, crops.seed, crops.label))
        # Turned as bytes, of which there are four times fewer.
        hr8, lr8 = (part if part is None else part.to(self.device, non_blocking=True) for part in (crops.hr, crops.lr))
        assert hr8 is not None
        hr = augment.to_float(augment.turned(hr8, turn, flip, rotate)).contiguous(memory_format=layout)
        hr = augment.varied(hr, turn, self.settings.augment)
        lr = self.degrade(hr, seed) if lr8 is None else augment.to_float(augment.turned(lr8, turn, flip, rotate))
        names = self.source.parts[0].reader.shards.manifest.attributes  # all data sets have the same
        columns = torch.from_numpy(crops.attributes).to(self.device).float().unbind(1)
        attributes = dict(zip(names, columns, strict=True))
        return Batch(lr.contiguous(memory_format=layout), hr, label, tuple(crops.keys), attributes)

    # ------------------------------------------------------------------------------------- what was replaced

    def counted(self) -> dict[str, int]:
        """Columns for metrics.jsonl. All ranks must call."""
        if not self.source.substitute:
            return {}
        return {"data/substituted": int(ranks.total(torch.tensor(self._replaced, device=self.device)))}

    def _note_replaced(self, step: int, micro_batches: Sequence[Crops]) -> None:
        """Writes down, as `substituted/rank-*.jsonl`, what this rank trained on in another's place."""
        swaps = [swap for crops in micro_batches for swap in crops.replaced]
        self._replaced += len(swaps)
        if swaps and self.folder:
            (self.folder / "substituted").mkdir(parents=True, exist_ok=True)
            with open(self.folder / "substituted" / f"rank-{ranks.rank():03d}.jsonl", "a", encoding="utf-8") as file:
                file.writelines(json.dumps({"step": step, **Replaced(*swap)._asdict()}) + "\n" for swap in swaps)

    def _replaced_before(self) -> int:
        if not ranks.is_first() or not self.folder:
            return 0
        return sum(len(path.read_text().splitlines()) for path in (self.folder / "substituted").glob("rank-*.jsonl"))

    # -------------------------------------------------------------------------------------- what is fetched

    def _noted(self, shards: Shards) -> Shards:
        """Shards that write down, as `fetched/node-*.jsonl`, what this node fetched of them."""
        if not isinstance(shards, RemoteShards) or not self.folder:
            return shards
        return replace(shards, ledger=self.folder / "fetched" / f"node-{self.node_of[ranks.rank()]:03d}.jsonl")

    def _fetching_ahead(self, position: int) -> Ahead | None:
        """The node's first rank fetches the window after the one that is read; shards of other nodes only if they are read."""
        if not self.remote or os.environ.get("LOCAL_RANK", "0") != "0":
            return None
        nodes, here = len(set(self.node_of)), self.node_of[ranks.rank()]

        def wanted() -> Iterator[Need]:
            for place, number, shard, counted in self.source.needs(position):
                shards = self.source.parts[number].reader.shards
                if isinstance(shards, RemoteShards) and home(counted, nodes) == here:
                    yield place, partial(shards.fetch, shard)

        return Ahead(wanted(), self.settings.window, position)

    def _say_traffic(self, step: int) -> None:
        """What the nodes have fetched, at the end of every epoch and of the run."""
        before, after = self.position_after(step - 1), self.position_after(step)
        ended = before // self.samples < after // self.samples or step == self.steps_to_do
        if not (self.remote and ranks.is_first() and ended):
            return
        fetched = self._fetched()
        parts = ", ".join(f"{node} {(size - self._told.get(node, 0)) / 1e6:,.1f} MB" for node, size in fetched.items())
        logger.info(f"fetched from epoch {self._told_at / self.samples:.2f} to {after / self.samples:.2f}: {parts or 'nothing'}")
        self._told, self._told_at = fetched, after

    def _fetched(self) -> dict[str, int]:
        """Bytes by node, since the run began."""
        ledgers = sorted((self.folder / "fetched").glob("node-*.jsonl")) if self.folder else []
        return {path.stem: sum(json.loads(line)["bytes"] for line in path.read_text().splitlines()) for path in ledgers}


def _as_it_is(crops: Any) -> Any:
    return crops


def _leave_signals_to_the_rank(worker: int) -> None:
    """A cluster sends its signals to every process; the rank decides, and its workers end with it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
