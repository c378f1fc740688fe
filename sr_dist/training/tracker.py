"""The contract of experiment trackers. A tracker is one file in `trackers/`; metrics.jsonl stays the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

Row = Mapping[str, Any]


class Tracker(Protocol):
    """Receives what a run logs, on the first rank only. No method may raise: training does not depend on a tracker.

    `at` is a row with the step and the number of images seen.
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
