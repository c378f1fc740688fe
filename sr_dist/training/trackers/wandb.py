"""Weights & Biases. The only file that imports wandb; a failure of W&B never stops the run.

A row of step s is W&B's step s, and the number of images seen is the x axis of every chart. So a run that was killed and
requeued is one W&B run without duplicate rows, online or synced later from its offline parts.
"""

from __future__ import annotations

import os
import re
import shlex
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from PIL.Image import Image

from sr_dist.core import config
from sr_dist.core.errors import first_line
from sr_dist.core.json_text import parse_json, read_json
from sr_dist.core.run_layout import ENVIRONMENT, METRICS, WANDB_ID, parent_of, run_id
from sr_dist.recipe.columns import better_direction
from sr_dist.recipe.sections import Recipe
from sr_dist.training.background_sync import BackgroundSync
from sr_dist.training.tracker import Row, grouped

Mode = Literal["online", "offline"]
AXIS = "images"
START, FINISH = 30.0, 60.0  # seconds that W&B may take to answer (or WANDB_INIT_TIMEOUT), and to receive the last rows


def open_tracker(recipe: Recipe, info: Callable[[str], None]) -> WandbTracker | None:
    if recipe.log.wandb_mode == "off":
        return None
    tracker = WandbTracker(recipe, info)
    return tracker if tracker.is_open else None


class WandbTracker:
    """Implements `tracker.Tracker`."""

    def __init__(self, recipe: Recipe, info: Callable[[str], None]) -> None:
        self._folder, self._name, self._info = recipe.folder, recipe.name, info
        self._run: Any = None
        self._next = 0  # the first step that W&B still accepts
        self._best: dict[str, float] = {}
        self._skipped: dict[str, float] = {}
        self._sync: BackgroundSync | None = None
        for row in _rows(recipe.folder / METRICS):
            self._remember(row)
        self._start(recipe)

    def row(self, row: Row) -> None:
        """A row that W&B got before a kill is skipped. A validation row never is: it may come late, after resuming."""

        if row["step"] >= self._next or any(key.startswith("validation/") for key in row):
            self._run.log(grouped(row), step=self._at(row))
        if best := self._remember(row):
            self._run.summary.update(best)
        if self._sync:
            self._sync.row(row["step"])

    def table(self, name: str, rows: Sequence[Row], at: Row) -> None:
        import wandb  # takes seconds

        if not rows:
            return
        table = wandb.Table(columns=list(rows[0]))
        for row in rows:
            table.add_data(*(wandb.Image(cell) if isinstance(cell, Image) else cell for cell in row.values()))
        self._run.log({name: table, AXIS: at[AXIS]}, step=self._at(at))

    def image(self, name: str, path: Path, at: Row) -> None:
        import wandb  # takes seconds

        self._run.log({name: wandb.Image(str(path)), AXIS: at[AXIS]}, step=self._at(at))

    def checkpoint(self, folder: Path, step: int, best: bool) -> None:
        """Sends the checkpoint as a version of the run's model."""
        import wandb  # takes seconds

        model = wandb.Artifact(re.sub(r"[^\w.-]", "-", self._name), type="model", metadata={"step": step})
        for path in sorted(folder.iterdir()):
            model.add_file(str(path))
        self._run.log_artifact(model, aliases=["latest", f"step-{step}", *(["best"] if best else [])])

    def alert(self, title: str, text: str) -> None:
        if self.is_open:  # not of the rows of earlier processes
            self._run.alert(title=title, text=text, level="WARN", wait_duration=0)

    def preempted(self, text: str) -> None:
        """W&B then shows the run as preempted, not as finished or crashed."""
        self.alert(f"{self._name} was stopped", text)
        self._run.mark_preempting()

    def close(self, code: int) -> None:
        self._run.finish(exit_code=code)
        if self._sync:
            self._sync.close()

    @property
    def is_open(self) -> bool:
        """False where W&B is not even available offline."""
        return self._run is not None

    def _start(self, recipe: Recipe) -> None:
        """Online if the recipe says so and the server answers, else offline, to be synced later."""
        modes: tuple[Mode, ...] = ("online", "offline") if recipe.log.wandb_mode == "online" else ("offline",)
        for mode in modes:
            try:
                self._run = self._open(recipe, mode)
            except Exception as problem:
                self._info(f"W&B is not available {mode} ({first_line(problem)}); training goes on, metrics.jsonl has everything")
            else:
                if mode == "offline" and recipe.log.sync_every:
                    parts = self._folder / "wandb"
                    self._sync = BackgroundSync(recipe.log.sync_every, parts, Path(self._run.dir).parent, self._info)
                    self._info(f"W&B offline: wandb sync sends it every {recipe.log.sync_every} steps")
                elif mode == "offline":
                    self._info(f"W&B offline: wandb sync {shlex.quote(str(self._folder))}/wandb/offline-run-* sends it later")
                return

    def _open(self, recipe: Recipe, mode: Mode) -> Any:
        """The run's id lies in the run folder, so that a requeued job continues the same W&B run."""
        import wandb  # takes seconds

        id_file, about = self._folder / WANDB_ID, self._folder / ENVIRONMENT
        if not id_file.is_file():
            id_file.write_text(uuid.uuid4().hex[:12] + "\n")
        environment = read_json(about) if about.is_file() else {}
        parent = parent_of(self._folder)
        more = {"environment": environment, "run_id": run_id(self._folder), "parent": parent}
        timeout = float(os.environ.get("WANDB_INIT_TIMEOUT", START))
        wandb.teardown()  # a failed attempt would hold the id
        run = wandb.init(
            project=recipe.log.project, name=recipe.name, dir=str(self._folder), mode=mode,
            id=id_file.read_text().strip(), resume="allow", config={**config.plain(recipe), **more},
            tags=[f"fork of {parent['id'][:8]} at {parent['step']}"] if parent else None,
            settings=wandb.Settings(init_timeout=timeout, finish_timeout=FINISH, silent=True),
        )  # fmt: skip
        self._next = run._starting_step  # `run.step` says 0 until the first row
        run.define_metric(AXIS)
        run.define_metric("*", step_metric=AXIS)
        return run

    def _at(self, row: Row) -> int:
        """W&B's step for a row: the row's own, or the next accepted step where W&B is ahead of the checkpoint."""
        self._next = max(row["step"], self._next)
        return self._next

    def _remember(self, row: Row) -> dict[str, float]:
        """Alerts about newly skipped updates, and returns the summary of metrics that have a new best value.

        W&B's own best values do not cover the run before a requeue.
        """
        new_best: dict[str, float] = {}
        for name in [key.removeprefix("validation/") for key in row if key.startswith("validation/")]:
            value, better = row[f"validation/{name}"], better_direction(name)
            sign = 1 if better == "higher" else -1
            if better and value is not None and (name not in self._best or sign * value > sign * self._best[name]):
                self._best[name] = value
                new_best |= {f"best/{name}": value, f"best/{name}_step": row["step"]}
        for key in [key for key in row if key.startswith("skipped/")]:
            if row[key] > self._skipped.get(key, 0):
                network = key.removeprefix("skipped/")
                text = f"{row[key]:.0f} updates of the {network} were skipped by step {row['step']}"
                self.alert(f"{self._name}: gradients that are not finite", text)
            self._skipped[key] = row[key]
        return new_best


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows with a validation, and the last one with counts of skipped updates. The others are not parsed, because a long run
    has millions; damaged ones are left out."""
    if not path.is_file():
        return
    counts = b""
    with open(path, "rb") as file:
        for line in file:
            if b'"validation/' in line:
                yield from _parsed(line)
            if b'"skipped/' in line:
                counts = line
    yield from _parsed(counts)


def _parsed(line: bytes) -> Iterator[dict[str, Any]]:
    with suppress(ValueError):
        row = parse_json(line)
        if isinstance(row, dict) and "step" in row:
            yield row
