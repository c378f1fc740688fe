"""The perception-distortion curve as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WIDTH, HEIGHT = 640.0, 380.0  # of the field; the numbers beside it are text of the page, which is as large on any screen
TICKS = 5
TONES = ("#2f6f5e", "#c4513a", "#3b7dd8", "#c9a227", "#8457b8", "#4aa3b5", "#d2749b", "#6b7280")


def page(tree: Mapping[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, select_autoescape  # spares 0.1 s at the start

    environment = Environment(
        loader=PackageLoader("sr_dist.evaluation.report", "."), autoescape=select_autoescape(["html"], default=True)
    )
    return environment.get_template("curve.html").render(tree=tree, axis=tree["perception"], **drawing(tree))


def drawing(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Marks and lines in the coordinates of the field, ticks as shares of its sides. Better is to the right and upwards."""
    horizontal, vertical = tree["distortion"], tree["perception"]
    points = [p for p in tree["points"] if None not in (p[horizontal]["value"], p[vertical]["value"])]
    x, y = ([p[axis]["value"] for p in points] for axis in (horizontal, vertical))
    (left, right), (low, high) = _span(x), _span(y)
    upwards = tree["better"] == "higher"

    def across(value: float) -> float:
        return (value - left) / (right - left) * WIDTH

    def up(value: float) -> float:
        share = (value - low) / (high - low)
        return ((1 - share) if upwards else share) * HEIGHT

    lengths = sorted({p["ema"] for p in points if p["ema"] is not None})
    tone = {length: TONES[number % len(TONES)] for number, length in enumerate(lengths)}
    marks = [
        {"x": across(p[horizontal]["value"]), "y": up(p[vertical]["value"]), "tone": tone.get(p["ema"], "#555"), "point": p}
        for p in points
    ]
    start = [mark for mark in marks if mark["point"]["ema"] is None]
    lines = []
    for length in lengths:
        own = sorted((mark for mark in marks if mark["point"]["ema"] == length), key=lambda mark: mark["point"]["alpha"])
        way = " ".join(f"{mark['x']:.1f},{mark['y']:.1f}" for mark in [*start, *own])
        lines.append({"length": length, "tone": tone[length], "way": way})
    steps = [number / (TICKS - 1) for number in range(TICKS)]
    return {
        "width": WIDTH, "height": HEIGHT, "marks": marks, "lines": lines,
        "x_ticks": [(share, left + share * (right - left)) for share in steps],
        "y_ticks": [(1 - share if upwards else share, low + share * (high - low)) for share in steps],
    }  # fmt: skip


def _span(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.5
    return low - margin, high + margin
