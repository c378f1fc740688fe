"""How fast training goes: images per second, time spent waiting, stragglers, operations per second."""

from __future__ import annotations

import re
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from sr_dist.recipe.sections import Recipe

Item = TypeVar("Item")
Row = Mapping[str, Any]

# Words of a device's name -> TFLOP/s that its maker states, dense: 16 bits, TF32, fp32. None: it has no such units.
# The first entry whose words are all in the name counts.
PEAKS: dict[str, tuple[float | None, float | None, float]] = {
    "B200": (2250, 1125, 75),
    "GH200": (989, 494, 67),
    "H200": (989, 494, 67),
    "H100 PCIe": (756, 378, 51),
    "H100 NVL": (835, 417, 60),
    "H100": (989, 494, 67),
    "A100": (312, 156, 19.5),
    "A40": (149.7, 74.8, 37.4),
    "A30": (165, 82, 10.3),
    "A10G": (70, 35, 35),
    "A10": (125, 62.5, 31.2),
    "L40S": (362, 183, 91.6),
    "L40": (181, 90.5, 90.5),
    "L4": (121, 60, 30.3),
    "RTX 6000 Ada": (364, 182, 91.1),
    "RTX A6000": (154.8, 77.4, 38.7),
    "RTX 4090": (165.2, 82.6, 82.6),
    "RTX 3090": (71, 35.6, 35.6),
    "V100": (125, None, 15.7),
    "T4": (65, None, 8.1),
}


@dataclass(frozen=True)
class Work:
    """What training on one image costs, and what a rank's device could do."""

    flops_per_image: float
    ranks: int
    peak: float | None  # TFLOP/s of one device

    def at(self, images_per_second: float) -> dict[str, float]:
        """Columns of metrics.jsonl: TFLOP/s of one rank, and its share of the peak where that is known."""
        tflops = self.flops_per_image * images_per_second / self.ranks / 1e12
        return {"tflops": tflops, **({"mfu": tflops / self.peak} if self.peak else {})}


def work(flops_per_image: float | None, recipe: Recipe, ranks: int, device: torch.device) -> Work | None:
    """None where the operations could not be counted."""
    if flops_per_image is None:
        return None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return Work(flops_per_image, ranks, peak(name, recipe.precision, recipe.tf32))


def peak(device: str, precision: str, tf32: bool) -> float | None:
    """TFLOP/s that the maker states for the device's name in this precision, or None."""
    there = set(re.split(r"[\s-]+", device.lower()))
    for words, (half, tensor, single) in PEAKS.items():
        if set(words.lower().split()) <= there:
            return half if precision != "no" else tensor if tf32 and tensor else single
    return None


class Clock:
    """How fast training goes since the last report, and what part of the time it waited for data."""

    def __init__(self, cuda: bool = False) -> None:
        self.work: Work | None = None  # what an image costs, where that is known
        self._cuda = cuda
        self._alone: list[tuple[Any, Any]] = []  # since the last report
        self._busy = self._waited = 0.0  # since the last report
        self._spent = 0.0  # busy time of the whole process
        self._steps = self._steps_done = 0
        self._since: float | None = None  # until when the time is counted

    def steps(self, arriving: Iterator[Item]) -> Iterator[Item]:
        """The same items; the time until they come is waiting, and counts, as the time between them does, as work."""
        while True:
            self._since = asked = time.perf_counter()
            try:
                item = next(arriving)
            except StopIteration:
                return
            self._waited += time.perf_counter() - asked
            self._steps += 1
            yield item
            self._count()

    def _count(self) -> None:
        now = time.perf_counter()
        self._busy, self._since = self._busy + now - (self._since or now), now

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Validation and saving are no training: they count neither for speed nor for the waiting."""
        self._count()
        yield
        self._since = time.perf_counter()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Around the part of a step in which no rank waits for another one: the forward pass."""
        begun = self._mark()
        yield
        self._alone.append((begun, self._mark()))

    def _mark(self) -> Any:
        """A moment, in the device's time where it has its own."""
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds_alone(self) -> float:
        """What this rank needed since the last report for its own images, to come and to go forward. The whole step shows no
        straggler, for all ranks wait for the slowest in it. The device must be done with the step; asked before `report`."""
        seconds = sum(a.elapsed_time(b) / 1e3 if self._cuda else b - a for a, b in self._alone)
        self._alone.clear()
        return seconds + self._waited

    def report(self, images_per_step: int) -> dict[str, float]:
        """Called within a step, which counts as done."""
        self._count()
        busy, waited, steps = max(self._busy, 1e-9), self._waited, max(self._steps, 1)
        self._spent, self._steps_done = self._spent + busy, self._steps_done + self._steps
        self._busy = self._waited = 0.0
        self._steps = 0
        speed = images_per_step * steps / busy
        found = {"images_per_second": speed, "data_wait": min(waited / busy, 1.0)}
        return found | self.work.at(speed) if self.work else found

    def remaining(self, steps_to_go: int) -> str:
        """Time to the end at the average speed so far."""
        seconds = int(steps_to_go * self._spent / max(self._steps_done, 1))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """The slowest rank's own time over the mean of all ranks': 1 is even, and twice the mean with two ranks is one at rest."""
    mean = sum(seconds) / len(seconds)
    return {"step_time_spread": max(seconds) / mean} if len(seconds) > 1 and mean > 0 else {}


def progress(row: Row, last_step: int, remaining: str) -> str:
    """One status line: step, speed, waiting, stragglers, memory, time left, losses. What is not known is not in it."""
    parts = [
        f"step {row['step']:>{len(str(last_step))}}/{last_step}",
        f"{row['images_per_second']:.1f} images/s",
        f"data wait {100 * row['data_wait']:.0f} %",
        f"spread {row['step_time_spread']:.2f}" if "step_time_spread" in row else "",
        f"memory {row['memory_gb']:.1f} GB" if "memory_gb" in row else "",
        f"{row['tflops']:.3g} TFLOP/s" if "tflops" in row else "",
        f"({100 * row['mfu']:.0f} % of peak)" if "mfu" in row else "",
        f"left {remaining}",
        *(f"{key.removeprefix('loss/')} {value:.4g}" for key, value in row.items() if key.startswith("loss/")),
    ]
    return "  ".join(part for part in parts if part)


def peak_memory_gb() -> float:
    """The most memory this process has held: the device's if there is one, else the process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
