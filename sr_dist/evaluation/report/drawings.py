"""Lines and points of the report's plots, in the coordinates of a box of 100 x 60; the template draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

WIDTH, HEIGHT, MARGIN, LABELS = 100.0, 60.0, 6.0, 20.0
DISTORTION = "psnr_y"  # the x axis of trade-offs


def histograms(rows: Sequence[Mapping[str, Any]], methods: Sequence[str], columns: Sequence[str]) -> list[dict[str, Any]]:
    """The outline of each method's distribution over images, for every column, in common bins."""
    plots = []
    for column in columns:
        values = {
            method: [row[column] for row in rows if row["method"] == method and row[column] is not None] for method in methods
        }
        pooled = [value for of_method in values.values() for value in of_method]
        if len(pooled) > len(methods):
            low, high = _span(pooled)
            bins = np.linspace(low, high, int(np.clip(len(pooled) / len(methods), 4, 24)) + 1)
            counts = {method: np.histogram(of_method, bins)[0] for method, of_method in values.items()}
            highest = max(count.max() for count in counts.values())
            lines = [_outline(count / highest) for count in counts.values()]
            plots.append({"column": column, "low": low, "high": high, "lines": lines})
    return plots


def _outline(shares: np.ndarray) -> str:
    edges = np.repeat(np.linspace(0, WIDTH, len(shares) + 1), 2)[1:-1]
    tops = np.repeat(HEIGHT - shares * (HEIGHT - MARGIN), 2)
    points = [(0.0, HEIGHT), *zip(edges, tops, strict=True), (WIDTH, HEIGHT)]
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in points)


def trade_offs(table: Mapping[str, Mapping[str, float | None]], columns: Mapping[str, str]) -> list[dict[str, Any]]:
    """PSNR against each perceptual column: a point per method, better to the right and upwards.

    `columns`: perceptual column -> "higher" or "lower".
    """
    plots = []
    for column, better in columns.items():
        pairs = [(number, row.get(DISTORTION), row[column]) for number, row in enumerate(table.values())]
        known = [(number, x, y) for number, x, y in pairs if x is not None and y is not None]
        if len(known) > 1:
            (left, right), (low, high) = _span([x for _, x, _ in known]), _span([y for _, _, y in known])
            top, bottom = (low, high) if better == "lower" else (high, low)
            points = [
                {
                    "place": number,
                    "x": LABELS + (x - left) / (right - left) * (WIDTH - LABELS - MARGIN),
                    "y": MARGIN + (y - top) / (bottom - top) * (HEIGHT - 2 * MARGIN),
                    "values": (x, y),
                }
                for number, x, y in known
            ]
            ends = {"left": left, "right": right, "top": top, "bottom": bottom}
            plots.append({"x": DISTORTION, "y": column, **ends, "points": points})
    return plots


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
