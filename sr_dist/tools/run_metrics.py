"""The rows of a run's metrics.jsonl, reduced to curves while they are read: memory does not grow with the length of the run."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from sr_dist.core.errors import UserError, first_line, with_article
from sr_dist.core.json_text import parse_json
from sr_dist.core.run_layout import METRICS, parent_folder, parent_of
from sr_dist.training.tracker import Row

MOST = 8192  # a curve has fewer points; from so many rows on it has at least half, each for 2, 4, 8 ... rows
LARGEST = 1e300  # larger values are gaps, because the axes of matplotlib overflow


class Curve:
    """One column: the number of images seen and the value at each row that has it, in fewer than MOST points.

    Values that were not finite are NaN, which makes a gap. A point for several rows has their mean, extremes and first value.
    """

    def __init__(self) -> None:
        self._size = 1  # rows for which a point stands
        self._images, self._values = array("d"), array("d")  # of rows that belong to no point yet
        self._points = np.empty((0, 6))  # images, first value, lowest, highest, mean, number of finite values

    def add(self, images: float, value: float) -> None:
        self._images.append(images)
        self._values.append(value)
        if len(self._values) >= max(MOST // 2, self._size):
            self._points = self._all()
            del self._images[:], self._values[:]
        if len(self._points) == MOST:
            self._points = _joined(self._points, 2)
            self._size *= 2

    def means(self) -> tuple[list[float], list[float]]:
        points = self._all()
        return points[:, 0].tolist(), points[:, 4].tolist()

    def extremes(self) -> tuple[list[float], list[float]]:
        """The lowest and the highest value of each point; where points are rows, the values."""
        points = self._all()
        if self._size == 1:
            return points[:, 0].tolist(), points[:, 1].tolist()
        return np.repeat(points[:, 0], 2).tolist(), points[:, 2:4].ravel().tolist()

    def sample(self) -> list[float]:
        """The value of the first row of each point."""
        return self._all()[:, 1].tolist()

    def is_nonzero(self) -> bool:
        extremes = self._all()[:, 2:4]
        return bool((np.nan_to_num(extremes) != 0).any())

    def _all(self) -> np.ndarray:
        """The points. The last one may stand for fewer rows."""
        return np.concatenate([self._points, _joined(_points_of(self._images, self._values), self._size)])


def _points_of(images: array[float], values: array[float]) -> np.ndarray:
    value = np.array(values)
    return np.stack([np.array(images), value, value, value, value, np.isfinite(value)], 1)


def _joined(points: np.ndarray, size: int) -> np.ndarray:
    """One point for each `size` of them, and one for the rest."""
    if size == 1 or not len(points):
        return points
    begins = np.arange(0, len(points), size)
    images, first, lowest, highest, mean, count = points.T
    total = np.add.reduceat(count, begins)
    share = count / np.repeat(np.maximum(total, 1), np.diff(begins, append=len(points)))  # weights, because a sum may overflow
    means = np.add.reduceat(np.where(count > 0, mean, 0) * share, begins)
    return np.stack(
        [
            images[begins], first[begins], np.fmin.reduceat(lowest, begins), np.fmax.reduceat(highest, begins),
            np.where(total > 0, means, np.nan), total,
        ], 1,
    )  # fmt: skip


class Scores:
    """The finite values of a validation's column: the highest, the lowest, each with its first step, and the last."""

    def __init__(self) -> None:
        self.highest = self.lowest = (math.nan, 0)
        self.last = math.nan

    def add(self, value: float, step: int) -> None:
        self.last = value
        if not value <= self.highest[0]:  # also the first one, beside NaN
            self.highest = value, step
        if not value >= self.lowest[0]:
            self.lowest = value, step


class RunMetrics:
    """Curves and scores of a run."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.step = self.images = 0  # of the last row
        self.curves: dict[str, Curve] = {}  # in the order of the columns in the file
        self.scores: dict[str, Scores] = {}

    def add(self, row: Row) -> None:
        step = row["step"]
        images = row.get("images", step)
        self.step, self.images = step, row.get("images", 0)
        for column, value in row.items():
            number = drawable(value)
            if column not in self.curves:
                self.curves[column] = Curve()
            self.curves[column].add(images, number)
            if column.startswith("validation/") and math.isfinite(number):
                self.scores.setdefault(column, Scores()).add(number, step)

    def curve(self, column: str) -> Curve:
        """Without points where no row has the column."""
        return self.curves.get(column) or Curve()


def read_metrics(folder: Path, name: str) -> RunMetrics:
    metrics = RunMetrics(name)
    for row in read_rows(folder):
        metrics.add(row)
    return metrics


def read_rows(folder: Path) -> Iterator[Row]:
    """The rows of a run, after those of its parents. Skips a last line that is still being written."""
    yield from parent_rows(folder)
    path = folder / METRICS
    with open(path, "rb") as file:
        for i, line in enumerate(file, 1):
            if line.endswith(b"\n"):
                yield parse_row(line, f"line {i} of '{path}'")
            else:
                with suppress(UserError):
                    yield parse_row(line, "the last line")


def parent_rows(folder: Path) -> Iterator[Row]:
    """The rows of a fork's parent up to the fork, and those of its parents."""
    parent, place = parent_of(folder), parent_folder(folder)
    if parent and place and (place / METRICS).is_file():
        yield from (row for row in read_rows(place) if row["step"] <= parent["step"])


def parse_row(line: bytes, place: str) -> Row:
    """A row: a step, and numbers or null by column."""
    try:
        row = parse_json(line.decode())
        problem = _problem_of(row)
    except ValueError as error:
        problem = first_line(error)
    if problem:
        raise UserError(f"RUN: {place} is not a row of metrics ({problem}); correct or delete it")
    return row


def _problem_of(row: Any) -> str | None:
    if not isinstance(row, dict):
        return f"it is {with_article(type(row).__name__)}"
    if row.get("step") is None:
        return "it has no step"
    for column, value in row.items():
        is_count = column in ("step", "images")
        is_number = isinstance(value, int | float)
        if not (is_number or value is None) or (is_count and not (is_number and 0 <= value < 2**63)):
            return f"{column} is {str(value)[:40]!r}"
    return None


def drawable(value: float | None) -> float:
    return float(value) if value is not None and abs(value) <= LARGEST else math.nan
