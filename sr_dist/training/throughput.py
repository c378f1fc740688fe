"""How fast training goes: images per second, time spent waiting, stragglers, operations per second."""

from __future__ import annotations

import re
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from sr_dist.core.progress import three_digits
from sr_dist.recipe.sections import Recipe
from sr_dist.training.tracker import Row

Item = TypeVar("Item")
Intervals = list[tuple[Any, Any]]  # begin and end, as moments of a Clock

# Words of a device's name -> TFLOP/s that its maker states, dense: 16 bits, TF32, fp32. The first entry whose words are all in
# the name counts.
PEAKS: dict[str, tuple[float, float, float]] = {
    "B200": (2250, 1125, 75),
    "GH200": (989, 494, 67),
    "H200": (989, 494, 67),
    "H100 PCIe": (756, 378, 51),
    "H100 NVL": (835, 417, 60),
    "H100": (989, 494, 67),
    "A100": (312, 156, 19.5),
    "A40": (149.7, 74.8, 37.4),
    "L40S": (362, 183, 91.6),
    "L40": (181, 90.5, 90.5),
    "L4": (121, 60, 30.3),
    "RTX 6000 Ada": (364, 182, 91.1),
    "RTX 4090": (165.2, 82.6, 82.6),
}


@dataclass(frozen=True)
class Work:
    """The cost of training on one image, and the peak speed of a rank's device."""

    flops_per_image: float
    ranks: int
    peak: float | None  # TFLOP/s of one device

    def at(self, images_per_second: float) -> dict[str, float]:
        """Columns of metrics.jsonl: TFLOP/s of one rank, and their share of the peak where that is known."""
        tflops = self.flops_per_image * images_per_second / self.ranks / 1e12
        return {"tflops": tflops, **({"mfu": tflops / self.peak} if self.peak else {})}


def work(flops_per_image: float | None, recipe: Recipe, ranks: int, device: torch.device) -> Work | None:
    """None where the operations could not be counted."""
    if flops_per_image is None:
        return None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return Work(flops_per_image, ranks, peak(name, recipe.precision, recipe.tf32))


def peak(device: str, precision: str, tf32: bool) -> float | None:
    """TFLOP/s that the maker states for the device in this precision, or None where the device is unknown."""
    words = set(re.split(r"[\s-]+", device.lower()))
    for name, (half, tensor, single) in PEAKS.items():
        if set(name.lower().split()) <= words:
            return half if precision != "no" else tensor if tf32 else single
    return None


class Clock:
    """Measures images per second since the last report, and the share of that time spent waiting for data.

    Intervals are measured in the device's time, where it has events. The host's time would count a slow device as a slow disk: a
    host that runs ahead stops for the device at any place, also while it waits for images.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.work: Work | None = None  # set where the cost of an image is known
        on_host = device is None or device.type == "cpu"
        self._event = None if on_host else torch.get_device_module(device).Event
        self._waits: Intervals = []  # since the last report, as all that follows
        self._forwards: Intervals = []
        self._busy = 0.0
        self._total_busy = 0.0  # of the whole process
        self._steps = self._total_steps = 0
        self._counted_until: float | None = None

    def steps(self, batches: Iterator[Item]) -> Iterator[Item]:
        """Yields the same items, and counts them as steps that last until the next is requested."""
        while True:
            self._counted_until = time.perf_counter()
            try:
                item = next(batches)
            except StopIteration:
                return
            self._steps += 1
            yield item
            self._count()

    def _count(self) -> None:
        now = time.perf_counter()
        self._busy, self._counted_until = self._busy + now - (self._counted_until or now), now

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around validation and saving, which are not training."""
        self._count()
        yield
        self._counted_until = time.perf_counter()

    def waiting(self) -> AbstractContextManager[None]:
        """Around the wait for a step's images. A device that is still busy with the step before does not wait."""
        return self.interval(self._waits)

    def forward(self) -> AbstractContextManager[None]:
        """Around a forward pass: the part of a step in which no rank waits for another."""
        return self.interval(self._forwards)

    @contextmanager
    def interval(self, intervals: Intervals) -> Iterator[None]:
        begin = self.moment()
        yield
        intervals.append((begin, self.moment()))

    def moment(self) -> Any:
        """A moment in the device's time, or in the host's without a GPU."""
        if self._event is None:
            return time.perf_counter()
        event = self._event(enable_timing=True)
        event.record()
        return event

    def seconds(self, intervals: Intervals) -> float:
        """The device must have finished the step."""
        return sum(begin.elapsed_time(end) / 1e3 if self._event else end - begin for begin, end in intervals)

    def own_seconds(self) -> float:
        """Seconds that this rank spent on its own images since the last report: waiting for data and forward passes.

        A whole step shows no straggler, because all ranks wait for the slowest one. The device must have finished the step. Call
        before `report`.
        """
        return self.seconds(self._waits) + self.seconds(self._forwards)

    def speed(self, images_per_step: int) -> float:
        """Images/s since the last report. Called within a step, which counts as done."""
        self._count()
        return images_per_step * max(self._steps, 1) / max(self._busy, 1e-9)

    def report(self, images_per_step: int) -> dict[str, float]:
        """Columns of metrics.jsonl. Called within a step, which counts as done and which the device must have finished."""
        speed = self.speed(images_per_step)
        busy, waited = max(self._busy, 1e-9), self.seconds(self._waits)
        self._total_busy, self._total_steps = self._total_busy + busy, self._total_steps + self._steps
        self._busy, self._steps = 0.0, 0
        self._waits.clear()
        self._forwards.clear()
        columns = {"images_per_second": speed, "data_wait": min(waited / busy, 1.0)}
        return columns | self.work.at(speed) if self.work else columns

    def remaining(self, steps: int) -> str:
        """Time for so many steps at the average speed so far."""
        seconds = int(steps * (self._total_busy + self._busy) / max(self._total_steps + self._steps, 1))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def step_time_spread(seconds: Sequence[float]) -> dict[str, float]:
    """The slowest rank's own time over the mean of all ranks: 1 is even. Empty on one rank."""
    mean = sum(seconds) / len(seconds)
    return {"step_time_spread": max(seconds) / mean} if len(seconds) > 1 and mean > 0 else {}


def progress_line(row: Row, last_step: int, remaining: str) -> str:
    """One status line from a row; absent columns are left out."""
    words = [
        f"step {row['step']:>{len(str(last_step))}}/{last_step}",
        f"{three_digits(row['images_per_second'])} images/s",
        f"data wait {100 * row['data_wait']:.0f} %" if "data_wait" in row else "",
        f"spread {row['step_time_spread']:.2f}" if "step_time_spread" in row else "",
        f"memory {row['memory_gb']:.1f} GB" if "memory_gb" in row else "",
        f"{row['tflops']:.3g} TFLOP/s" if "tflops" in row else "",
        f"({100 * row['mfu']:.0f} % of peak)" if "mfu" in row else "",
        f"left {remaining}",
        *(f"{key.removeprefix('loss/')} {value:.4g}" for key, value in row.items() if key.startswith("loss/")),
        *(f"{key.replace('/', ' ')} {value}" for key, value in row.items() if key.startswith("skipped/") and value),
    ]
    return "  ".join(word for word in words if word)


def peak_memory_gb() -> float:
    """The peak memory of the device if there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
