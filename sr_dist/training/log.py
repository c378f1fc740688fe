"""What a run says: log.txt and the terminal for people, metrics.jsonl as the record, and how fast it goes."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sr_dist.recipe.sections import Recipe
from sr_dist.tools.flops import Work
from sr_dist.training.samples import Samples
from sr_dist.training.terminal import Bar, Lines
from sr_dist.training.trackers.wandb import Mirror

logger = logging.getLogger("sr_dist")
Item = TypeVar("Item")
Row = Mapping[str, Any]


class Log:
    """The first rank's voice; other ranks make one that is silent."""

    def __init__(self, recipe: Recipe, speaks: bool) -> None:
        self._bar = Bar(recipe.name, recipe.steps)
        self._mirror: Mirror | None = None
        self._artifacts = recipe.log.artifacts
        self.speaks = speaks
        logger.handlers.clear()
        logger.setLevel(logging.INFO)
        logger.propagate = False
        if not speaks:
            logger.addHandler(logging.NullHandler())
            return
        for handler in (Lines(), logging.FileHandler(recipe.folder / "log.txt", encoding="utf-8")):
            handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
            logger.addHandler(handler)
        self._mirror = Mirror(recipe, self.say)
        self._metrics = open(recipe.folder / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115 - open as long as the run

    def say(self, text: str) -> None:
        logger.info(text)

    def advance(self, step: int) -> None:
        """This step is done: the bar moves, where there is one."""
        if self.speaks:
            self._bar.advance(step)

    def row(self, row: Row) -> None:
        """One line of metrics.jsonl. What is not finite is written as null: JSON has no word for it."""
        if self._mirror:
            clean = {key: (value if not isinstance(value, float) or math.isfinite(value) else None) for key, value in row.items()}
            self._metrics.write(json.dumps(clean) + "\n")
            self._metrics.flush()
            self._mirror.row(clean)

    def samples(self, samples: Samples | None, scores: Sequence[Row]) -> None:
        """The sheet of sample pictures, and a table of them with each image's own scores."""
        if self._mirror and samples:
            by_image = {score["image"]: {k: v for k, v in score.items() if k not in ("image", "method")} for score in scores}
            at = {"step": samples.step, "images": samples.images}
            self._mirror.picture("samples/sheet", samples.sheet, at)
            rows = [{"image": name, **views, **by_image.get(name, {})} for name, views in samples.views.items()]
            self.table("samples/table", rows, at)

    def table(self, name: str, rows: Sequence[Row], at: Row) -> None:
        """For W&B: a line per row, in which cells may be pictures; `at` has the step and the images seen."""
        if self._mirror:
            self._mirror.table(name, rows, at)

    def checkpoint(self, folder: Path, step: int, best: bool) -> None:
        """A checkpoint was written; it goes to W&B where the recipe asks for that."""
        if self._mirror and self._artifacts:
            self._mirror.checkpoint(folder, step, best)

    def preempted(self, text: str) -> None:
        self.say(text)
        if self._mirror:
            self._mirror.preempted(text)

    def close(self, code: int = 0) -> None:
        self._bar.close()
        if self._mirror:
            self._mirror.close(code)


class Trace:
    """`trace/rank-*.jsonl`: the keys that each micro-batch of this rank was really trained on."""

    def __init__(self, folder: Path, rank: int, wanted: bool) -> None:
        self._file = None
        if wanted:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(folder / f"rank-{rank:03d}.jsonl", "a", encoding="utf-8")  # noqa: SIM115 - open as long as the run

    def write(self, step: int, keys: tuple[str, ...]) -> None:
        if self._file:
            self._file.write(json.dumps({"step": step, "keys": keys}) + "\n")
            self._file.flush()


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
        import torch

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
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
