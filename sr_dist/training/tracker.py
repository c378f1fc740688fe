"""The contract of experiment trackers; metrics.jsonl stays the record.

A tracker is one file in `trackers/` with a function `open_tracker(recipe, info) -> Tracker | None`. It returns None if the recipe
does not ask for the tracker; `info` writes a line to the log.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from sr_dist.core import plugins
from sr_dist.core.plugins import PACKAGES
from sr_dist.recipe.sections import Recipe

Row = Mapping[str, Any]


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


def tracker_openers() -> list[OpenTracker]:
    """`open_tracker` of every file in `trackers/`."""
    package = PACKAGES["tracker"]
    return [importlib.import_module(f"{package}.{name}").open_tracker for name in plugins.names(package)]


def alert(recipe: Recipe, title: str, text: str, info: Callable[[str], None]) -> None:
    """Opens the trackers of a run that has ended, and sends an alert to those that have `alert(title, text)`."""
    for open_tracker in tracker_openers():
        tracker = open_tracker(recipe, info)
        if tracker is not None:
            if send := getattr(tracker, "alert", None):
                send(title, text)
            tracker.close(1)
