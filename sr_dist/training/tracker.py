"""The contract of experiment trackers; metrics.jsonl stays the record.

A tracker is one file in `trackers/`, or a file of your own that `log.trackers` names, with a function
`open_tracker(recipe, info) -> Tracker | None`. It returns None if the recipe does not ask for the tracker; `info` writes a line
to the log. It may have `check(recipe)`, which raises UserError before training starts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from sr_dist.core import plugins
from sr_dist.core.plugins import PACKAGES
from sr_dist.recipe.sections import Recipe

Row = Mapping[str, Any]
GROUPS = {
    "images_per_second": "speed",
    "data_wait": "speed",
    "step_time_spread": "speed",
    "tflops": "speed",
    "mfu": "speed",
    "memory_gb": "memory",
}


class Tracker(Protocol):
    """Receives what a run logs, on the first rank only. Training does not depend on a tracker: one that raises gets nothing more.

    `at` is a row with the step and the number of images seen. A tracker may also have `alert(title, text)`, which tells of a
    failed attempt of a cluster's job.
    """

    def row(self, row: Row) -> None:
        """A row of metrics.jsonl."""

    def table(self, name: str, rows: Sequence[Row], at: Row) -> None:
        """A table with one line per row; cells may be images."""

    def image(self, name: str, path: Path, at: Row) -> None: ...

    def checkpoint(self, folder: Path, step: int, best: bool) -> None: ...

    def preempted(self, text: str) -> None:
        """The run was stopped and will be continued."""

    def close(self, code: int) -> None: ...


OpenTracker = Callable[[Recipe, Callable[[str], None]], Tracker | None]


def tracker_openers(recipe: Recipe) -> list[OpenTracker]:
    """`open_tracker` of every file in `trackers/`, and of the user's own that the recipe names."""
    return [plugins.need_function(module, "open_tracker", path, "log.trackers") for module, path in _modules(recipe)]


def check_trackers(recipe: Recipe) -> None:
    """What trackers require, before anything starts."""
    for module, path in _modules(recipe):
        plugins.need_function(module, "open_tracker", path, "log.trackers")
        if hasattr(module, "check"):
            module.check(recipe)


def _modules(recipe: Recipe) -> list[tuple[ModuleType, Path]]:
    package = PACKAGES["tracker"]
    own = [name for name in recipe.log.trackers if "." in name]
    located = [plugins.locate(package, name, "log.trackers") for name in (*plugins.names(package), *own)]
    return [(plugins.import_part(name, path, "log.trackers"), path) for name, path in located]


def grouped(row: Row) -> dict[str, Any]:
    """The columns of metrics.jsonl with the prefixes by which trackers group charts. A column with a prefix keeps it."""
    return {f"{GROUPS[key]}/{key}" if key in GROUPS else key: value for key, value in row.items() if key != "step"}


def alert(recipe: Recipe, title: str, text: str, info: Callable[[str], None]) -> None:
    """Opens the trackers of a run that has ended, and sends an alert to those that have `alert(title, text)`."""
    for open_tracker in tracker_openers(recipe):
        tracker = open_tracker(recipe, info)
        if tracker is not None:
            if send := getattr(tracker, "alert", None):
                send(title, text)
            tracker.close(1)
