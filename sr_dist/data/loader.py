"""Shards -> micro-batches: the order's positions become bytes, uint8 crops, and batches on the device.

    position g --order--> (epoch, sample) --index--> bytes --crc32, decode, crop--> uint8 HR     in workers (crops.py)
    uint8 HR --flip, turn, vary, degrade--> Batch(lr, hr, label, keys, attributes)               on the device, in batches

Where shards are elsewhere, they are fetched into the node's cache as they are needed, and a thread fetches ahead.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Timer
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from sr_dist.core import ranks
from sr_dist.core.batch import Batch
from sr_dist.core.child_processes import end_with_parent
from sr_dist.core.errors import UserError, first_line
from sr_dist.data import augment
from sr_dist.data.crops import Crops, CropSource, Handed, Positions, Samples, crops_of
from sr_dist.data.fetch_log import Ledger
from sr_dist.data.format import Shards
from sr_dist.data.order import Mix, home, seed_of
from sr_dist.data.reader import ShardReader
from sr_dist.data.remote.prefetch import Ahead, Need
from sr_dist.data.remote.sources import RemoteShards
from sr_dist.data.select import portion_of
from sr_dist.data.shared_batches import Ring, Slot
from sr_dist.recipe.sections import whole_weights

AHEAD = 2  # steps that each loading process reads ahead
GRACE = 2.0  # seconds in which loading processes end by themselves,
END_AT_ONCE = signal.SIGUSR2  # before they are told to
MOST_NAMED = 32  # samples in an error


class Stream:
    """The training data of one rank, from a position on. `steps(first)` yields (step, its micro-batches) up to the last.

    `shards` are data sets, mixed as `settings.weights` say. `folder` is where it writes down what it fetched and what it
    replaced. All ranks must make one where shards are fetched.
    """

    def __init__(
        self, shards: Sequence[Shards], settings: Any, *, seed: int, scale: int, accumulate: int, steps: int, channels: int,
        degrade: Callable[[Tensor, Tensor], Tensor], device: torch.device,
        channels_last: bool = False, position: int = 0, done: int = 0, folder: Path | None = None,
    ) -> None:  # fmt: skip
        self.settings, self.steps_to_do, self.device, self.degrade, self.scale = settings, steps, device, degrade, scale
        # Whole images have sizes of their own, so each is a micro-batch.
        self.accumulate = accumulate if settings.crop else settings.batch // ranks.size()
        self.channels_last = channels_last
        self._origin = position - done * settings.batch  # where the data would have stood before step 1
        self._arriving: Any = None
        self._ahead: Ahead | None = None
        self._step = done  # in hand
        self.remote = any(isinstance(part, RemoteShards) for part in shards)
        self.node_of = ranks.nodes() if self.remote else [0] * ranks.size()
        self._ledger = Ledger(folder, self.node_of[ranks.rank()])
        parts = [
            Samples(
                ShardReader(self._ledger.noted(part), len(shards) + 1),
                seed_of(seed, number),
                settings.window,
                portion_of(settings),
            )
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
            self._ledger.replaced(step, [swap for part in crops for swap in part.facts.replaced])
            yield step, [self._on_device(part, step) for part in crops]
            self._say_traffic(step)

    def crops(self, first: int) -> Iterator[tuple[int, list[Crops]]]:
        """The same as it comes from the loading processes: until the next step is asked for, for then they fill it anew."""
        begin = self.position_after(first - 1)
        self._ledger.begin(first, begin / self.samples)
        ring = self._ring()
        loader = DataLoader(
            replace(self.source, ring=ring),
            sampler=self._positions(begin, self.steps_to_do - first + 1),
            batch_size=None,  # a "sample" of the loader is a whole micro-batch
            collate_fn=_as_it_is,
            num_workers=self.settings.workers,
            prefetch_factor=self._ahead_of_each if self.settings.workers else None,
            worker_init_fn=_live_and_die_with_the_rank,
        )
        self._arriving = iter(loader)
        self._ahead = self._fetching_ahead(begin)  # after the loading processes were forked: it is a thread
        for step in range(first, self.steps_to_do + 1):
            self._step = step
            if self._ahead:
                self._ahead.reached(self.position_after(step - 1))
            yield step, [self._received(next(self._arriving), ring) for _ in range(self.accumulate)]

    def _positions(self, start: int, steps: int) -> Positions:
        shard = self.source.shard if self.remote else None
        here = (ranks.rank(), ranks.size(), self.node_of)
        return Positions(start, steps, self.settings.batch, self.accumulate, *here, shard)

    @property
    def _ahead_of_each(self) -> int:
        """Micro-batches that a loading process is told of."""
        return AHEAD * self.accumulate

    def _ring(self) -> Ring | None:
        """Room for what the loading processes read ahead, and for what the rank has of them in hand."""
        crop, workers = self.settings.crop, self.settings.workers
        if not crop or not workers:
            return None
        # A process is told of its next micro-batch when it hands one over: so many it is told of, and these are in hand.
        slots = self._ahead_of_each + -(-self.accumulate // workers)
        most = -(-self.settings.batch // (ranks.size() * self.accumulate))
        stored = self.source.parts[0].reader.shards.manifest.scale
        sides = (crop, crop // self.scale) if stored else (crop,)
        return Ring(workers, slots, most, [(side, side, self.source.channels) for side in sides])

    def _received(self, crops: Crops | Handed | UserError, ring: Ring | None = None) -> Crops:
        if isinstance(crops, UserError):
            raise crops
        if isinstance(crops, Crops):
            return crops
        if isinstance(crops.images, Slot):
            assert ring
            return crops_of(ring.images(crops.images), crops.facts)
        return crops_of([torch.from_numpy(part) for part in crops.images], crops.facts)

    def explained(self, problem: Exception) -> Exception:
        """A loading process that died, as an error that names what may have been its end: they read some steps ahead."""
        if "DataLoader worker" not in str(problem):
            return problem
        last = min(self._step + AHEAD * self.settings.workers, self.steps_to_do)
        positions = range(self.position_after(self._step - 1), self.position_after(last))
        keys = ", ".join(f"'{self.source.key(position)}'" for position in positions[:MOST_NAMED])
        more = f" and {len(positions) - MOST_NAMED} more" if len(positions) > MOST_NAMED else ""
        steps = f"samples of the steps {self._step} to {last}"
        return RuntimeError(f"a loading process died ({first_line(problem)}) while {steps} were read: {keys}{more}")

    def position_after(self, step: int) -> int:
        """Where the data stand after a step: all that is to be remembered of them."""
        return self._origin + step * self.settings.batch

    def close(self) -> None:
        """Ends the workers. They ignore the signal with which torch ends those that do not answer, as one that waits for a
        silent server does not; so there is one of our own. Nothing of theirs is to be saved.
        """
        if self._ahead:
            self._ahead.close()
        workers = getattr(self._arriving, "_workers", [])
        if workers:
            at_last = Timer(GRACE, _send, (workers, END_AT_ONCE))
            at_last.start()
            self._arriving._shutdown_workers()
            at_last.cancel()
        self._arriving = None

    def preview(self, count: int) -> list[Batch]:
        """The first samples of the order one by one: pictures to look at where there is no validation set."""
        places = range(min(count, self.samples))
        return [self._on_device(self._received(self.source[range(place, place + 1)])) for place in places]

    def _on_device(self, crops: Crops, step: int = 0) -> Batch:
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        flip, rotate = self.settings.flip, self.settings.rotate
        facts = crops.facts
        turn, seed, label = (self._sent(torch.from_numpy(numbers)) for numbers in (facts.turn, facts.seed, facts.label))
        # Turned as bytes, of which there are four times fewer.
        hr8, lr8 = self._sent(crops.hr), None if crops.lr is None else self._sent(crops.lr)
        hr = augment.to_float(augment.turned(hr8, turn, flip, rotate)).contiguous(memory_format=layout)
        hr = augment.varied(hr, turn, self.settings.augment)
        lr = self.degrade(hr, seed) if lr8 is None else augment.to_float(augment.turned(lr8, turn, flip, rotate))
        names = self.source.parts[0].reader.shards.manifest.attributes  # all data sets have the same
        columns = self._sent(torch.from_numpy(facts.attributes)).float().unbind(1)
        attributes = dict(zip(names, columns, strict=True))
        share = len(hr) / self.settings.batch
        return Batch(lr.contiguous(memory_format=layout), hr, label, facts.keys, attributes, step, share)

    def _sent(self, numbers: Tensor) -> Tensor:
        """To the device. A GPU fetches them later, from memory of their own: nobody waits, and slots are filled anew."""
        return numbers.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else numbers.to(self.device)

    def counted(self) -> dict[str, int]:
        """Columns for metrics.jsonl. All ranks must call."""
        return {"data/substituted": self._ledger.count_replaced(self.device)} if self.source.substitute else {}

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
        if self.remote and ranks.is_first() and ended:
            self._ledger.say_fetched(after / self.samples)


def _send(processes: Sequence[Any], number: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _as_it_is(crops: Any) -> Any:
    return crops


def _live_and_die_with_the_rank(worker: int) -> None:
    """A cluster sends its signals to every process; the rank decides."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(END_AT_ONCE, lambda *_: os._exit(0))  # as after all its work: torch takes any other end for a failure
    end_with_parent()
