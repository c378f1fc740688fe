"""What a run says: log.txt and the terminal for people, metrics.jsonl as the record, and how fast it goes."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sr_dist.recipe.sections import Recipe
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
