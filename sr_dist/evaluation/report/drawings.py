"""Lines and points of the report's drawings, in the coordinates of a box of 100 x 60; the template draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

WIDTH, HEIGHT, MARGIN, LABELS = 100.0, 60.0, 6.0, 20.0
PERCEPTUAL = ("lpips", "fid", "fd", "kid", "kd", "patch", "class")  # how columns begin that are set against PSNR


def histograms(rows: Sequence[Mapping[str, Any]], methods: Sequence[str], columns: Sequence[str]) -> list[dict[str, Any]]:
    """For every column the outline of each method's distribution over images, all in the same bins."""
    found = []
    for column in columns:
        values = {
            method: [row[column] for row in rows if row["method"] == method and row[column] is not None] for method in methods
        }
        everything = [value for there in values.values() for value in there]
        if len(everything) > len(methods):
            low, high = _span(everything)
            bins = np.linspace(low, high, int(np.clip(len(everything) / len(methods), 4, 24)) + 1)
            counts = {method: np.histogram(there, bins)[0] for method, there in values.items()}
            most = max(count.max() for count in counts.values())
            lines = [_outline(count / most) for count in counts.values()]
            found.append({"column": column, "low": low, "high": high, "lines": lines})
    return found


def _outline(shares: np.ndarray) -> str:
    edges = np.repeat(np.linspace(0, WIDTH, len(shares) + 1), 2)[1:-1]
    tops = np.repeat(HEIGHT - shares * (HEIGHT - MARGIN), 2)
    points = [(0.0, HEIGHT), *zip(edges, tops, strict=True), (WIDTH, HEIGHT)]
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in points)


def trade_offs(table: Mapping[str, Mapping[str, float | None]], columns: Sequence[str]) -> list[dict[str, Any]]:
    """PSNR against each perceptual column: a point per method, better upwards and to the right."""
    x = next((column for column in columns if column.startswith("psnr")), "")
    found = []
    for y in (column for column in columns if x and column.startswith(PERCEPTUAL)):
        pairs = [(place, values[x], values[y]) for place, values in enumerate(table.values())]
        there = [(place, a, b) for place, a, b in pairs if a is not None and b is not None]
        if len(there) > 1:
            (left, right), (least, most) = _span([a for _, a, _ in there]), _span([b for _, _, b in there])
            points = [
                {
                    "place": place,
                    "x": LABELS + (a - left) / (right - left) * (WIDTH - LABELS - MARGIN),
                    "y": MARGIN + (b - least) / (most - least) * (HEIGHT - 2 * MARGIN),
                    "values": (a, b),
                }
                for place, a, b in there
            ]
            found.append({"x": x, "y": y, "left": left, "right": right, "least": least, "most": most, "points": points})
    return found


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
