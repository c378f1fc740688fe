"""What a run says: log.txt and the terminal for people, metrics.jsonl as the record, W&B as a mirror of it."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sr_dist.errors import first_line
from sr_dist.recipe import Recipe

logger = logging.getLogger("sr_dist")
Item = TypeVar("Item")


class Log:
    """The first rank's voice; other ranks make one that is silent."""

    def __init__(self, recipe: Recipe, speaks: bool) -> None:
        self.folder, self.speaks = recipe.folder, speaks
        self._wandb: Any = None
        logger.handlers.clear()
        logger.setLevel(logging.INFO)
        logger.propagate = False
        if not speaks:
            logger.addHandler(logging.NullHandler())
            return
        for handler in (logging.StreamHandler(sys.stdout), logging.FileHandler(self.folder / "log.txt", encoding="utf-8")):
            handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
            logger.addHandler(handler)
        self._metrics = open(self.folder / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115 - open as long as the run
        if recipe.log.wandb != "off":
            self._start_wandb(recipe)

    def say(self, text: str) -> None:
        logger.info(text)

    def row(self, row: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl. What is not finite is written as null: JSON has no word for it."""
        if self.speaks:
            clean = {key: (value if not isinstance(value, float) or math.isfinite(value) else None) for key, value in row.items()}
            self._metrics.write(json.dumps(clean) + "\n")
            self._metrics.flush()
            self._mirror(lambda wandb: wandb.log(dict(clean)))

    def picture(self, name: str, path: Path, row: Mapping[str, Any]) -> None:
        self._mirror(lambda wandb: wandb.log({name: wandb.Image(str(path)), **row}))

    def close(self, code: int = 0) -> None:
        self._mirror(lambda wandb: wandb.finish(exit_code=code))

    def _start_wandb(self, recipe: Recipe) -> None:
        """The run's id is ours and lies in the run folder, so that a requeued job continues the same W&B run."""
        id_file = self.folder / "wandb_id"
        if not id_file.is_file():
            id_file.write_text(uuid.uuid4().hex[:12] + "\n")
        try:
            import wandb

            wandb.init(
                project=recipe.log.project, name=recipe.name, dir=str(self.folder),
                id=id_file.read_text().strip(), resume="allow",
                mode="online" if recipe.log.wandb == "online" else "offline", config=recipe.model_dump(mode="json"),
                settings=wandb.Settings(init_timeout=60, silent=True),
            )  # fmt: skip
            wandb.define_metric("images")
            wandb.define_metric("*", step_metric="images")
            self._wandb = wandb
        except Exception as problem:
            self.say(f"W&B is not available ({first_line(problem)}); training goes on, metrics.jsonl has everything")

    def _mirror(self, tell: Any) -> None:
        if self._wandb is None:
            return
        try:
            tell(self._wandb)
        except Exception as problem:
            self._wandb = None
            self.say(f"W&B stopped answering ({first_line(problem)}); training goes on, metrics.jsonl has everything")


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

    def __init__(self) -> None:
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

    def report(self, images_per_step: int) -> dict[str, float]:
        """Called within a step, which counts as done."""
        self._count()
        busy, waited, steps = max(self._busy, 1e-9), self._waited, max(self._steps, 1)
        self._spent, self._steps_done = self._spent + busy, self._steps_done + self._steps
        self._busy = self._waited = 0.0
        self._steps = 0
        return {"images_per_second": images_per_step * steps / busy, "data_wait": min(waited / busy, 1.0)}

    def remaining(self, steps_to_go: int) -> str:
        """Time to the end at the average speed so far."""
        seconds = int(steps_to_go * self._spent / max(self._steps_done, 1))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def progress(row: Mapping[str, Any], last_step: int, remaining: str) -> str:
    """One status line: step, speed, waiting, time left, losses."""
    losses = "  ".join(f"{key.removeprefix('loss/')} {value:.4g}" for key, value in row.items() if key.startswith("loss/"))
    width = len(str(last_step))
    return (
        f"step {row['step']:>{width}}/{last_step}  {row['images_per_second']:.1f} images/s  "
        f"data wait {100 * row['data_wait']:.0f} %  left {remaining}  {losses}"
    )


def peak_memory_gb() -> float:
    """The most memory this process has held: the device's if there is one, else the process's."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
