"""Curves of runs from their metrics.jsonl, as pictures and as one page."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, FileSystemLoader
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from sr_dist.core.errors import UserError
from sr_dist.core.files import write_whole
from sr_dist.recipe.columns import better_direction

COLOURS = (
    "#1f6f8b",
    "#d1495b",
    "#66a182",
    "#edae49",
    "#7b5ea7",
    "#5c6670",
    "#b5651d",
    "#2e4057",
)  # told apart by the colour-blind
INK, LINE = "#23262b", "#e4e1d8"
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif", "font.size": 9, "text.color": INK, "axes.labelcolor": "#6b7280", "xtick.color": "#6b7280",
    "ytick.color": "#6b7280", "axes.edgecolor": LINE, "grid.color": LINE, "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "svg.fonttype": "none",
}  # fmt: skip
# Section -> the columns that it shows, by how they begin.
SECTIONS = {
    "losses": ("loss/",),
    "readings": ("reading/",),
    "validation": ("validation/",),
    "speed": ("images_per_second", "data_wait", "step_time_spread", "tflops", "mfu", "memory_gb"),
    "gradients": ("grad_norm/", "skipped/", "learning_rate"),
}
TITLES = {
    "images_per_second": "images per second", "data_wait": "time spent waiting for data", "memory_gb": "memory, GB",
    "step_time_spread": "slowest rank over the mean", "tflops": "TFLOP/s per rank", "mfu": "share of the device's peak",
    "learning_rate": "learning rate",
}  # fmt: skip
FAMILIES = {"grad_norm": "gradient norm of the {}", "skipped": "updates of the {} left out"}
SHARES = ("data_wait", "mfu")
EXACT = ("learning_rate", "memory_gb", "skipped/")  # there is no noise to be taken away
SPANS = 50  # a curve is averaged over spans of a fiftieth of it; with fewer points than two to a span it is drawn as it is
HEADROOM = 1.08  # above the largest value of an axis that begins at 0
SPREAD = 30.0  # a ratio of largest to smallest value beyond which an axis is logarithmic


@dataclass(frozen=True)
class Curves:
    """One run: column -> its points (images seen, value). Values that were not finite are gaps."""

    name: str
    rows: tuple[dict[str, Any], ...]

    def points(self, column: str) -> tuple[list[float], list[float]]:
        rows = [row for row in self.rows if column in row]
        values = [math.nan if row[column] is None else row[column] for row in rows]
        return [row.get("images", row["step"]) for row in rows], values


def plot(folders: tuple[str, ...], out: Path) -> None:
    runs = [read(Path(run), name) for run, name in zip(folders, labels(folders), strict=True)]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UserError(f"out: '{out}' cannot be made: {problem.strerror}") from None
    pictures: dict[str, list[str]] = {}
    with matplotlib.rc_context(STYLE):
        for section in SECTIONS:
            if columns := columns_of(section, runs):
                write_whole(out / f"{section}.png", sheet(columns, runs))
                pictures[section] = [panel(column, runs) for column in columns]
    write_whole(out / "curves.html", page(runs, pictures).encode())
    print(f"{', '.join(f'{name}.png' for name in pictures)} and curves.html are in {out}")


def read(folder: Path, name: str) -> Curves:
    """The rows of a run; a last line that is still being written is left out."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return Curves(name, tuple(row(line, f"line {i} of '{path}'") for i, line in enumerate(lines, 1) if line.endswith("\n")))


def row(line: str, place: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"RUN: {place} is no row of metrics; mend it or take it out")
    return found


def labels(runs: tuple[str, ...]) -> list[str]:
    """Folder names, or whole paths where two of them are alike."""
    names = [Path(run).resolve().name for run in runs]
    return names if len(set(names)) == len(names) else list(runs)


def columns_of(section: str, runs: list[Curves]) -> list[str]:
    """The columns of a section that any run has, in the order in which they appear. Counts that never left zero are none."""
    found = dict.fromkeys(key for run in runs for row in run.rows for key in row)
    shown = [key for begin in SECTIONS[section] for key in found if key.startswith(begin)]
    return [key for key in shown if not key.startswith("skipped/") or any(row.get(key) for run in runs for row in run.rows)]


def draw(axes: Axes, column: str, runs: list[Curves]) -> None:
    """One column of all runs. Long curves are drawn faintly as they are and clearly as they run on average."""
    everything: list[float] = []
    for number, run in enumerate(runs):
        images, values = run.points(column)
        if not values:
            continue
        colour, gid = COLOURS[number % len(COLOURS)], f"{column}--run{number}"
        everything += [value for value in values if math.isfinite(value)]
        if column.startswith("validation/"):
            axes.plot(images, values, "o-", color=colour, markersize=3, linewidth=1.4, gid=gid)
        elif len(values) < 2 * SPANS or column.startswith(EXACT):
            axes.plot(images, values, color=colour, linewidth=1.3, gid=gid, marker="." if len(values) < 3 else "")
        else:
            axes.plot(images, values, color=colour, linewidth=0.6, alpha=0.3, gid=f"raw-{gid}")
            axes.plot(images, smoothed(values), color=colour, linewidth=1.6, gid=gid)
    dress(axes, column, everything)


def dress(axes: Axes, column: str, values: list[float]) -> None:
    """Title, grid, and axes that suit the values."""
    axes.set_title(title(column), parse_math=False)
    axes.grid(True, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("images seen")
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 5))
    if column in SHARES:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    if column in ("images_per_second", "memory_gb", "tflops", *SHARES):
        axes.set_ylim(0, HEADROOM * max(values) if values and max(values) > 0 else None)
    elif values and min(values) > 0 and max(values) / min(values) > SPREAD:
        axes.set_yscale("log")


def title(column: str) -> str:
    family, _, name = column.rpartition("/")
    return TITLES.get(column, FAMILIES.get(family, "{}").format(name.replace("_", " ")))


def smoothed(values: list[float]) -> list[float]:
    """The mean of the points around each one, before it and after it, so that nothing is late. Gaps do not count."""
    reach, found = max(len(values) // (2 * SPANS), 1), []
    for i in range(len(values)):
        around = [value for value in values[max(i - reach, 0) : i + reach + 1] if math.isfinite(value)]
        found.append(math.fsum(around) / len(around) if around else math.nan)
    return found


def sheet(columns: list[str], runs: list[Curves]) -> bytes:
    """A section as a PNG, three panels to a row."""
    wide = min(3, len(columns))
    high = -(-len(columns) // wide)
    figure = Figure(figsize=(4.2 * wide, 2.7 * high + 0.4), layout="constrained")
    places = figure.subplots(high, wide, squeeze=False).flatten()
    for axes, column in zip(places, columns, strict=False):
        draw(axes, column, runs)
    for axes in places[len(columns) :]:
        axes.set_axis_off()
    legend(figure, runs, places[: len(columns)])
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=140)
    return file.getvalue()


def legend(figure: Figure, runs: list[Curves], places: Any) -> None:
    """A line of each run, from whichever panel has it, under its name as it is: matplotlib would leave out names that begin
    with _ and read those with $ as formulas."""
    lines = {str(line.get_gid()).rpartition("--run")[2]: line for axes in places for line in axes.get_lines()}
    there = [(lines[str(i)], run.name) for i, run in enumerate(runs) if str(i) in lines]
    drawn = figure.legend(
        [line for line, _ in there], [" "] * len(there), loc="outside upper left", ncols=min(len(runs), 4), frameon=False
    )
    for text, (_, name) in zip(drawn.get_texts(), there, strict=True):
        text.set_parse_math(False)
        text.set_text(name)


def panel(column: str, runs: list[Curves]) -> str:
    """One panel as SVG for the page; the curves' ids say which run they are of."""
    figure = Figure(figsize=(4.2, 2.7), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    draw(axes, column, runs)
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": column}):  # ids are of the whole page
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue().split("?>", 1)[-1].split('.dtd">', 1)[-1].strip()


def page(runs: list[Curves], pictures: dict[str, list[str]]) -> str:
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    known = [{"name": run.name, "colour": COLOURS[i % len(COLOURS)], **summary(run)} for i, run in enumerate(runs)]
    return environment.get_template("plot.html").render(runs=known, pictures=pictures)


def summary(run: Curves) -> dict[str, Any]:
    """How far a run is, how fast, and its last and best validation."""
    speeds = [row["images_per_second"] for row in run.rows if "images_per_second" in row]
    return {
        "step": run.rows[-1]["step"] if run.rows else 0,
        "images": run.rows[-1].get("images", 0) if run.rows else 0,
        "speed": sorted(speeds)[len(speeds) // 2] if speeds else None,
        "scores": list(scores(run)),
    }


def scores(run: Curves) -> Iterator[dict[str, Any]]:
    for column in columns_of("validation", [run]):
        rows = [row for row in run.rows if row.get(column) is not None]
        better = better_direction(column.removeprefix("validation/"))
        if rows and better:
            best = (max if better == "higher" else min)(rows, key=lambda row: row[column])
            yield {
                "name": column.removeprefix("validation/"),
                "best": best[column],
                "step": best["step"],
                "last": rows[-1][column],
            }
