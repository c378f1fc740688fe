"""What a run writes while it trains: log.txt and the terminal for people, metrics.jsonl as the record, trackers, the trace."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from sr_dist.core.errors import first_line
from sr_dist.core.files import Lines
from sr_dist.core.lost_writes import LostWrites
from sr_dist.core.progress import Progress, print_line
from sr_dist.core.run_layout import LOG, METRICS, TRACE
from sr_dist.recipe.sections import Recipe
from sr_dist.training.samples import SampleSheet
from sr_dist.training.tracker import Row, Tracker, tracker_openers

SILENCE = 30.0  # seconds after which a line is due where no progress bar is seen

logger = logging.getLogger("sr_dist")


class Log:
    """Writes on the first rank; on other ranks it is silent. `lost` counts what the disk refuses."""

    def __init__(self, recipe: Recipe, first: bool, lost: LostWrites) -> None:
        self.first = first
        self._lost = lost
        self._name, self._steps = recipe.name, recipe.steps
        self._progress: Progress | None = None
        self._artifacts = recipe.log.artifacts
        self._trackers: list[Tracker] = []
        self._stepped, self._spoke = False, time.monotonic()
        self._handlers: list[logging.Handler] = []
        self._propagated = logger.propagate
        logger.setLevel(logging.INFO)
        logger.propagate = False
        if not first:
            self._add(logging.NullHandler())
            return
        for handler in (TerminalHandler(), LogFile(recipe.folder / LOG, self._lost)):
            handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
            self._add(handler)
        trackers = (open_tracker(recipe, self.info) for open_tracker in tracker_openers(recipe))
        self._trackers = [tracker for tracker in trackers if tracker is not None]
        self._metrics = Lines(recipe.folder / METRICS)

    def _add(self, handler: logging.Handler) -> None:
        self._handlers.append(handler)
        logger.addHandler(handler)

    def info(self, text: str) -> None:
        self._spoke = time.monotonic()
        logger.info(text)

    def is_line_due(self) -> bool:
        """After the first step of the process, and after SILENCE: whether a line should show that it works. On a terminal the
        progress bar does."""
        first, self._stepped = not self._stepped, True
        on_terminal = sys.stderr is not None and sys.stderr.isatty()
        return self.first and not on_terminal and (first or time.monotonic() - self._spoke >= SILENCE)

    def advance(self, step: int) -> None:
        """Moves the progress bar to this step. It appears with the first step, and only on a terminal."""
        if not self.first:
            return
        if self._progress is None:
            self._progress = Progress(self._steps, "step", done=step, about=self._name, lines=False)
        self._progress.reach(step)

    def row(self, row: Row) -> None:
        """Writes one line of metrics.jsonl. Values that are not finite become null, because JSON has no word for them."""
        if not self.first:
            return
        clean = {key: (value if not isinstance(value, float) or math.isfinite(value) else None) for key, value in row.items()}
        with self._lost.around(METRICS):
            self._metrics.write(json.dumps(clean))
        self._send(lambda tracker: tracker.row(clean))

    def samples(self, sheet: SampleSheet | None, scores: Sequence[Row]) -> None:
        """Sends the sheet of sample images, and a table of them with the scores of each image."""
        if not sheet:
            return
        by_image = {score["image"]: {k: v for k, v in score.items() if k not in ("image", "method")} for score in scores}
        at = {"step": sheet.step, "images": sheet.images}
        path = sheet.path
        self._send(lambda tracker: tracker.image("samples/sheet", path, at))
        self.table("samples/table", [{"image": name, **row, **by_image.get(name, {})} for name, row in sheet.rows.items()], at)

    def table(self, name: str, rows: Sequence[Row], at: Row) -> None:
        """Sends a table to the trackers: a line per row, in which cells may be images."""
        self._send(lambda tracker: tracker.table(name, rows, at))

    def checkpoint(self, folder: Path, step: int, best: bool) -> None:
        """Sends a checkpoint to the trackers where the recipe asks for that."""
        if self._artifacts:
            self._send(lambda tracker: tracker.checkpoint(folder, step, best))

    def preempted(self, text: str) -> None:
        self.info(text)
        self._send(lambda tracker: tracker.preempted(text))

    def _send(self, send: Callable[[Tracker], None]) -> None:
        """To every tracker; training does not depend on one that fails."""
        for tracker in list(self._trackers):
            try:
                send(tracker)
            except Exception as problem:
                self._trackers.remove(tracker)
                name, reason = type(tracker).__name__, first_line(problem)
                self.info(f"{name} failed ({reason}); it gets nothing more, training goes on, {METRICS} has everything")

    def close(self, code: int = 0) -> None:
        if self._progress is not None:
            self._progress.close()
        self._send(lambda tracker: tracker.close(code))
        self._lost.report()
        for handler in self._handlers:
            logger.removeHandler(handler)
            handler.close()
        logger.propagate = self._propagated
        if self.first:
            self._metrics.close()


class Trace:
    """`trace/rank-*.jsonl`: the keys of every micro-batch that this rank trained on."""

    def __init__(self, folder: Path, rank: int, enabled: bool, lost: LostWrites) -> None:
        self._file, self._lost = None, lost
        if enabled:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = Lines(folder / f"rank-{rank:03d}.jsonl")

    def write(self, step: int, keys: tuple[str, ...]) -> None:
        if self._file:
            with self._lost.around(TRACE):
                self._file.write(json.dumps({"step": step, "keys": keys}))


class LogFile(logging.Handler):
    """log.txt. It is for people: no run ends because a line of it is lost."""

    def __init__(self, path: Path, lost: LostWrites) -> None:
        super().__init__()
        self._path, self._lost = path, lost
        self._file: Lines | None = None

    def emit(self, record: logging.LogRecord) -> None:
        with self._lost.around(LOG, tolerate=True):
            self._file = self._file or Lines(self._path)
            self._file.write(self.format(record))

    def close(self) -> None:
        if self._file:
            self._file.close()
        super().close()


class TerminalHandler(logging.Handler):
    """Prints lines to stdout."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stdout is None:  # as with >&-
            return
        with suppress(OSError, ValueError):  # the terminal was closed
            print_line(self.format(record))
