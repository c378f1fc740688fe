"""Shards -> micro-batches: the positions of the order become bytes, uint8 crops, and batches on the device.

    position g --order--> (epoch, sample) --index--> bytes --crc32, decode, crop--> uint8 HR     in workers (crops.py)
    uint8 HR --flip, turn, vary, degrade--> Batch(lr, hr, label, keys, attributes)               on the device, in batches

Remote shards are fetched into the node's cache on demand, and a thread fetches ahead.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Timer
from time import monotonic
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from sr_dist.core import launch_env, ranks
from sr_dist.core.batch import Batch
from sr_dist.core.child_processes import end_with_parent, without_count_of_cores
from sr_dist.core.contracts import Degradation
from sr_dist.core.errors import UserError, first_line
from sr_dist.core.lost_writes import LostWrites
from sr_dist.data import augment
from sr_dist.data.crops import Crops, CropSource, DataSet, Positions
from sr_dist.data.fetch_log import FetchLog
from sr_dist.data.format import Shards
from sr_dist.data.order import Mix, seed_of
from sr_dist.data.reader import ShardReader
from sr_dist.data.remote.prefetch import Depth, FetchTask, Limits, Prefetcher
from sr_dist.data.remote.sources import RemoteShards
from sr_dist.data.select import portion_of
from sr_dist.data.sending import send_together
from sr_dist.data.shared_batches import SharedBatches, Slot
from sr_dist.recipe.sections import Data, whole_weights

PREFETCH_STEPS = 2  # steps whose micro-batches each worker queues: a rank is this times data.workers steps ahead
GRACE = 2.0  # seconds in which workers may end by themselves
EXIT_SIGNAL = signal.SIGUSR2  # sent to workers after GRACE
MAX_KEYS_IN_ERROR = 32
Result = TypeVar("Result")


@dataclass(frozen=True)
class LoaderConfig:
    """The parts of a recipe that determine the batches."""

    data: Data
    seed: int
    scale: int
    accumulate: int
    steps: int
    channels: int
    channels_last: bool = False


@dataclass(frozen=True)
class Start:
    """The position of the data after `done` steps."""

    position: int = 0
    done: int = 0


class Loader:
    """The training data of one rank. `steps(first)` yields (step, micro-batches) up to the last step.

    `shards` are data sets, mixed by the weights of `config.data`. Records of fetched and replaced samples go to `folder`.
    All ranks must create a loader where shards are remote.
    """

    def __init__(
        self,
        shards: Sequence[Shards],
        config: LoaderConfig,
        degrade: Degradation,
        device: torch.device,
        start: Start | None = None,
        folder: Path | None = None,
        lost: LostWrites | None = None,
    ) -> None:
        data, start = config.data, start or Start()
        self.config, self.data, self.degrade, self.device = config, data, degrade, device
        # Whole images have different sizes, so each is a micro-batch.
        self.accumulate = config.accumulate if data.crop else data.batch // ranks.size()
        self._origin = start.position - start.done * data.batch  # the position before step 1
        self._step = start.done  # the current step
        self._batches: Iterator[Crops | UserError] = iter(())  # of the DataLoader
        self._prefetcher: Prefetcher | None = None
        self.remote = any(isinstance(data_set, RemoteShards) for data_set in shards)
        self.node_of = ranks.nodes() if self.remote else [0] * ranks.size()
        self._fetch_log = FetchLog(folder, self.node_of[ranks.rank()], lost)
        num_readers = len(shards) + 1  # they share the open files of this process, and the validation set is read in it too
        readers = [ShardReader(self._fetch_log.attach(data_set), num_readers) for data_set in shards]
        data_sets = [
            DataSet(reader, seed_of(config.seed, number), data.window, portion_of(data)) for number, reader in enumerate(readers)
        ]
        mix = Mix(whole_weights(data.weights))
        self.source = CropSource(data_sets, mix, config.scale, data.crop, config.channels, data.on_corrupt == "substitute")

    @property
    def samples(self) -> int:
        """The number of samples in all data sets together. An epoch of the run is as many images."""
        return self.source.samples

    def steps(
        self, first: int, waiting: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> Iterator[tuple[int, list[Batch]]]:
        """Step numbers from `first` to the recipe's last, each with this rank's micro-batches on its device.

        `waiting` is entered around the wait for the workers' images.
        """
        crops = self.crop_steps(first)
        while True:
            with waiting():
                arrived = next(crops, None)
            if arrived is None:
                return
            step, micro_batches = arrived
            self._fetch_log.record_substitutions(step, [row for crops in micro_batches for row in crops.substitutions])
            yield step, [self._to_batch(crops, step) for crops in micro_batches]
            self._log_fetched(step)

    def crop_steps(self, first: int) -> Iterator[tuple[int, list[Crops]]]:
        """Like `steps`, but the uint8 crops in host memory. They are valid until the next step is requested: workers reuse it."""
        begin = self.position_after(first - 1)
        self._fetch_log.start(first, begin / self.samples)
        shared = self._shared_batches()
        with without_count_of_cores():
            batches = DataLoader(
                replace(self.source, shared=shared),
                sampler=self._positions(begin, self.config.steps - first + 1),
                batch_size=None,  # a "sample" of the DataLoader is a whole micro-batch
                collate_fn=_unchanged,
                num_workers=self.data.workers,
                prefetch_factor=self._prefetch_factor if self.data.workers else None,
                worker_init_fn=_set_up_worker,
            )
            self._batches = iter(batches)
        self._prefetcher = self._start_prefetcher(begin)  # a thread, so it starts after the workers are forked
        busy = 0.0  # seconds of the last step after its data had arrived
        for step in range(first, self.config.steps + 1):
            self._step = step
            if self._prefetcher:
                self._prefetcher.advance(self.position_after(step - 1), busy)
            crops = [_receive(next(self._batches), shared) for _ in range(self.accumulate)]
            arrived = monotonic()
            yield step, crops
            busy = monotonic() - arrived

    def _positions(self, start: int, steps: int) -> Positions:
        shards = self.source.shards if self.remote else None
        return Positions(start, steps, self.data.batch, self.accumulate, ranks.rank(), ranks.size(), self.node_of, shards)

    @property
    def _prefetch_factor(self) -> int:
        """The number of micro-batches that are queued for each worker."""
        return PREFETCH_STEPS * self.accumulate

    def _shared_batches(self) -> SharedBatches | None:
        """Memory for the batches that workers read ahead and for those that the rank is using."""
        crop, workers = self.data.crop, self.data.workers
        if not crop or not workers:
            return None
        # A worker begins its next micro-batch when it hands one over, so those in use need slots in addition to the queue.
        slots = self._prefetch_factor + -(-self.accumulate // workers)
        largest = -(-self.data.batch // (ranks.size() * self.accumulate))
        stored = self.source.data_sets[0].reader.shards.manifest.scale
        sides = (crop, crop // self.config.scale) if stored else (crop,)
        return SharedBatches(workers, slots, largest, [(side, side, self.source.channels) for side in sides])

    def describe_failure(self, error: Exception) -> Exception:
        """Replaces the error of a worker that died by one that names the samples it may have been reading."""
        if "DataLoader worker" not in str(error):
            return error
        last = min(self._step + PREFETCH_STEPS * self.data.workers, self.config.steps)
        positions = range(self.position_after(self._step - 1), self.position_after(last))
        keys = ", ".join(f"'{self.source.key(position)}'" for position in positions[:MAX_KEYS_IN_ERROR])
        more = f" and {len(positions) - MAX_KEYS_IN_ERROR} more" if len(positions) > MAX_KEYS_IN_ERROR else ""
        steps = f"the samples of steps {self._step} to {last}"
        return RuntimeError(f"a data worker died ({first_line(error)}) while reading {steps}: {keys}{more}")

    def position_after(self, step: int) -> int:
        """The position of the data after a step: their whole state."""
        return self._origin + step * self.data.batch

    def close(self) -> None:
        """Stops the workers. They ignore SIGTERM, so torch cannot stop one that is blocked on a silent server. We send
        SIGUSR2 after GRACE seconds. Workers have no state to save.
        """
        if self._prefetcher:
            self._prefetcher.close()
        batches: Any = self._batches  # with private attributes of torch
        workers = getattr(batches, "_workers", [])
        if workers:
            timer = Timer(GRACE, _send, ([worker.pid for worker in workers], EXIT_SIGNAL))
            timer.start()
            batches._shutdown_workers()
            timer.cancel()
        self._batches = iter(())

    def first_batches(self, count: int) -> list[Batch]:
        """The first samples of the order, one per batch: sample images for runs without a validation set."""
        positions = range(min(count, self.samples))
        return [self._to_batch(_receive(self.source[range(position, position + 1)])) for position in positions]

    def _to_batch(self, crops: Crops, step: int = 0) -> Batch:
        layout = torch.channels_last if self.config.channels_last else torch.contiguous_format
        flip, rotate = self.data.flip, self.data.rotate
        numbers = [torch.from_numpy(each) for each in (crops.turn, crops.seed, crops.label, crops.attributes)]
        (turn, seed, label, attributes8), (hr8, lr8) = self._to_device(numbers, [crops.hr, crops.lr])
        assert hr8 is not None
        # Oriented as uint8, which is a quarter of the bytes.
        hr = augment.to_float(augment.orient(hr8, turn, flip, rotate)).contiguous(memory_format=layout)
        hr = augment.vary(hr, turn, self.data.augment)
        lr = self.degrade(hr, seed) if lr8 is None else augment.to_float(augment.orient(lr8, turn, flip, rotate))
        names = self.source.data_sets[0].reader.shards.manifest.attributes  # the same in all data sets
        columns = attributes8.float().unbind(1)
        attributes = dict(zip(names, columns, strict=True))
        share = len(hr) / self.data.batch
        lr = lr.contiguous(memory_format=layout)
        return Batch(lr, hr, label, crops.keys, attributes=attributes, step=step, share=share, seeds=seed)

    def _to_device(self, numbers: list[Tensor], images: list[Tensor | None]) -> tuple[list[Tensor], list[Tensor | None]]:
        """A copy to a GPU is asynchronous, and the images' slot can be reused at once."""
        if self.device.type == "cpu":
            return numbers, images
        lines = [image.permute(0, 2, 3, 1) for image in images if image is not None]  # as they lie in memory
        arrived = send_together([*numbers, *lines], self.device)
        sent = iter(arrived[len(numbers) :])
        return arrived[: len(numbers)], [None if image is None else next(sent).permute(0, 3, 1, 2) for image in images]

    def log_columns(self) -> dict[str, int]:
        """Columns for metrics.jsonl. All ranks must call."""
        return {"data/substituted": self._fetch_log.total_substituted(self.device)} if self.source.substitute else {}

    def _start_prefetcher(self, position: int) -> Prefetcher | None:
        """The first rank of a node fetches ahead what its ranks will read: the next window, and the steps after those that the
        workers of the ranks already read."""
        if not self.remote or launch_env.local_rank() != 0:
            return None
        steps = self.config.steps - (position - self._origin) // self.data.batch
        sets = [data_set.reader.shards for data_set in self.source.data_sets]
        place = [
            (shards, shard) for shards in sets for shard in range(len(shards.manifest.shards))
        ]  # by number over all data sets
        needs = self._positions(position, steps).needs() if len(set(self.node_of)) > 1 else self._needs_of_one_node(position)

        def tasks() -> Iterator[FetchTask]:
            for at, numbers in needs:
                for shards, shard in (place[number] for number in numbers):
                    if isinstance(shards, RemoteShards):
                        yield at, partial(shards.fetch, shard)

        return Prefetcher(tasks(), Depth(self._depth_limits([s for s in sets if isinstance(s, RemoteShards)])), position)

    def _depth_limits(self, remote: Sequence[RemoteShards]) -> Limits:
        entries = [entry for shards in remote for entry in shards.manifest.shards]
        size, room = max(sum(entry.bytes for entry in entries), 1), min(shards.cache.limit for shards in remote)
        position_bytes = size / self.samples / len(set(self.node_of))
        read_ahead = PREFETCH_STEPS * max(self.data.workers, 1) * self.data.batch
        return Limits(
            horizon=max(self.data.window, 2 * read_ahead),
            most_horizon=min(int(room / position_bytes) - self.data.window, self.samples),
            most_at_once=max(room // (4 * max(max(entry.bytes for entry in entries), 1)), 1),
            position_bytes=position_bytes,
            shard_bytes=size / len(entries),
            at_once=self.data.fetch_at_once,
            ahead=self.data.fetch_ahead,
        )

    def _needs_of_one_node(self, position: int) -> Iterator[tuple[int, list[int]]]:
        """It reads all shards, so nothing has to be divided."""
        for need in self.source.shard_needs(position):
            yield need.position, [need.number]

    def _log_fetched(self, step: int) -> None:
        """Logs what the nodes have fetched, at the end of every epoch and of the run."""
        if not self.remote or not ranks.is_first():
            return
        before, after = self.position_after(step - 1), self.position_after(step)
        if before // self.samples < after // self.samples or step == self.config.steps:
            self._fetch_log.log_fetched(after / self.samples)


def _receive(result: Crops | UserError, shared: SharedBatches | None = None) -> Crops:
    """The result of a worker, with its images."""
    if isinstance(result, UserError):
        raise result
    if isinstance(result.images, Slot):
        assert shared
        return result._replace(images=shared.arrays(result.images))
    return result


def _send(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _unchanged(result: Result) -> Result:
    return result


def _set_up_worker(worker: int) -> None:
    """A cluster sends its signals to every process, but only the rank acts on them. A worker ends with its rank."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(EXIT_SIGNAL, lambda *_: os._exit(0))  # torch treats any other exit code as a failure
    end_with_parent()
