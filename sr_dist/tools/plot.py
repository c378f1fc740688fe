"""Curves of runs from their metrics.jsonl, as PNG files and as one HTML page."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, FileSystemLoader
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from sr_dist.core.errors import UserError, first_line
from sr_dist.core.json_text import parse_json
from sr_dist.core.outputs import make_folder, write_output
from sr_dist.core.run_layout import METRICS, parent_folder, parent_of
from sr_dist.recipe.columns import better_direction
from sr_dist.training.tracker import Row

# These can also be told apart by colour-blind readers.
COLOURS = ("#1f6f8b", "#d1495b", "#66a182", "#edae49", "#7b5ea7", "#5c6670", "#b5651d", "#2e4057")
INK, LINE = "#23262b", "#e4e1d8"
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif", "font.size": 9, "text.color": INK, "axes.labelcolor": "#6b7280", "xtick.color": "#6b7280",
    "ytick.color": "#6b7280", "axes.edgecolor": LINE, "grid.color": LINE, "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "svg.fonttype": "none",
}  # fmt: skip
SECTIONS = {  # section -> the first letters of its columns
    "losses": ("loss/",),
    "readings": ("reading/",),
    "validation": ("validation/",),
    "speed": ("images_per_second", "data_wait", "step_time_spread", "tflops", "mfu", "memory_gb"),
    "gradients": ("grad_norm/", "skipped/", "learning_rate"),
}
TITLES = {
    "images_per_second": "images per second", "data_wait": "share of time spent waiting for data", "memory_gb": "memory, GB",
    "step_time_spread": "time of the slowest rank / mean", "tflops": "TFLOP/s per rank", "mfu": "share of the GPU's peak",
    "learning_rate": "learning rate",
}  # fmt: skip
FAMILIES = {"grad_norm": "gradient norm of the {}", "skipped": "skipped updates of the {}"}
SHARES = ("data_wait", "mfu")
FROM_ZERO = ("images_per_second", "memory_gb", "tflops", *SHARES)
NOT_NOISY = ("learning_rate", "memory_gb", "skipped/")  # drawn without smoothing
SPANS = 50  # a curve is smoothed over a 50th of its length, unless that is fewer than two points
HEADROOM = 1.08  # the top of an axis that begins at 0, over the largest value
LARGEST = 1e300  # larger values are gaps, because the axes of matplotlib overflow
LOG_RATIO = 30.0  # an axis is logarithmic if the largest value is more than this times the smallest


@dataclass(frozen=True)
class RunMetrics:
    """The rows of a run's metrics.jsonl."""

    name: str
    rows: tuple[Row, ...]

    def curve(self, column: str) -> tuple[list[float], list[float]]:
        """The number of images seen and the value at each point. Values that were not finite are NaN, which makes a gap."""
        rows = [row for row in self.rows if column in row]
        return [row.get("images", row["step"]) for row in rows], [drawable(row[column]) for row in rows]


def plot_runs(folders: Sequence[str], out: Path) -> None:
    runs = [read_metrics(Path(folder), name) for folder, name in zip(folders, run_names(folders), strict=True)]
    make_folder(out, "out")
    panels: dict[str, list[str]] = {}
    with matplotlib.rc_context(STYLE):
        for section in SECTIONS:
            if columns := section_columns(section, runs):
                write_output(out / f"{section}.png", section_png(columns, runs), "out")
                panels[section] = [panel_svg(column, runs) for column in columns]
    if not panels:
        raise UserError(f"RUN: {', '.join(folders)} has no column that is drawn yet")
    write_output(out / "curves.html", page_html(runs, panels).encode(errors="backslashreplace"), "out")
    print(f"{', '.join(f'{section}.png' for section in panels)} and curves.html are in {out}")


# ---------------------------------------------------------------------------------------------------------------- data


def read_metrics(folder: Path, name: str) -> RunMetrics:
    """Skips a last line that is still being written."""
    path, rows = folder / METRICS, []
    with open(path, "rb") as file:
        for i, line in enumerate(file, 1):
            if line.endswith(b"\n"):
                rows.append(parse_row(line, f"line {i} of '{path}'"))
            else:
                with suppress(UserError):
                    rows.append(parse_row(line, "the last line"))
    return RunMetrics(name, (*parent_rows(folder), *rows))


def parent_rows(folder: Path) -> tuple[Row, ...]:
    """The rows of a fork's parent up to the fork, and those of its parents."""
    parent, place = parent_of(folder), parent_folder(folder)
    if not parent or not place or not (place / METRICS).is_file():
        return ()
    return tuple(row for row in read_metrics(place, place.name).rows if row["step"] <= parent["step"])


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
        return f"it is a {type(row).__name__}"
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


def run_names(folders: Sequence[str]) -> list[str]:
    """The names of the folders, or their whole paths if two names are equal. Fonts draw no bytes that are not UTF-8."""
    names = [Path(folder).resolve().name for folder in folders]
    unique = names if len(set(names)) == len(names) else list(folders)
    return [os.fsencode(name).decode(errors="backslashreplace") for name in unique]


def section_columns(section: str, runs: Sequence[RunMetrics]) -> list[str]:
    """The columns of a section that any run has, in their order in the file. Counts that are always 0 are left out."""
    columns = dict.fromkeys(key for run in runs for row in run.rows for key in row)
    selected = [column for prefix in SECTIONS[section] for column in columns if column.startswith(prefix)]
    return [key for key in selected if not key.startswith("skipped/") or any(row.get(key) for run in runs for row in run.rows)]


def smooth(values: list[float]) -> list[float]:
    """The mean of the points around each one, before and after it, so that the curve has no delay. Gaps do not count.

    From running sums, which are exact: as whole multiples of the smallest power of two in the values.
    """
    reach, n = max(len(values) // (2 * SPANS), 1), len(values)
    ratios = [value.as_integer_ratio() if math.isfinite(value) else None for value in values]
    unit = max((ratio[1] for ratio in ratios if ratio), default=1)
    sums = list(accumulate((ratio[0] * (unit // ratio[1]) if ratio else 0 for ratio in ratios), initial=0))
    counts = list(accumulate((ratio is not None for ratio in ratios), initial=0))
    windows = [(max(i - reach, 0), min(i + reach + 1, n)) for i in range(n)]
    return [
        (sums[high] - sums[low]) / (unit * (counts[high] - counts[low])) if counts[high] > counts[low] else math.nan
        for low, high in windows
    ]


# ------------------------------------------------------------------------------------------------------------- drawing


def draw_column(axes: Axes, column: str, runs: Sequence[RunMetrics]) -> None:
    """One column of all runs. A long curve is drawn twice: faint as it is, and clear after smoothing."""
    finite: list[float] = []
    for number, run in enumerate(runs):
        images, values = run.curve(column)
        if not values:
            continue
        colour, gid = COLOURS[number % len(COLOURS)], f"{column}--run{number}"
        finite += [value for value in values if math.isfinite(value)]
        if column.startswith("validation/"):
            if reference := run.curve(column.replace("validation/", "bicubic/", 1))[1]:
                axes.axhline(reference[-1], color=colour, linewidth=0.9, linestyle=":", gid=f"raw-{gid}")
            axes.plot(images, values, "o-", color=colour, markersize=3 if len(values) > 1 else 6, linewidth=1.4, gid=gid)
            if len(values) == 1 and math.isfinite(values[0]):  # one point says little by its height alone
                axes.annotate(f"{values[0]:.4g}", (images[0], values[0]), (6, 4), textcoords="offset points", color=colour)
        elif len(values) < 2 * SPANS or column.startswith(NOT_NOISY):
            axes.plot(images, values, color=colour, linewidth=1.3, gid=gid, marker="." if len(values) < 3 else "")
        else:
            axes.plot(images, values, color=colour, linewidth=0.6, alpha=0.3, gid=f"raw-{gid}")
            axes.plot(images, smooth(values), color=colour, linewidth=1.6, gid=gid)
    format_axes(axes, column, finite)
    if len(runs) > 1:  # also where a run starts from the weights of another
        axes.set_xlabel("images seen by each run, from its own 0")


def format_axes(axes: Axes, column: str, values: list[float]) -> None:
    """Title, grid, units, and a scale that suits the values."""
    axes.set_title(title(column), parse_math=False)
    axes.grid(True, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("images seen")
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 5))
    if column in SHARES:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    if column in FROM_ZERO:
        axes.set_ylim(0, HEADROOM * max(values) if values and max(values) > 0 else None)
    elif values and min(values) > 0 and max(values) / min(values) > LOG_RATIO:
        axes.set_yscale("log")


def title(column: str) -> str:
    family, _, name = column.rpartition("/")
    return TITLES.get(column, FAMILIES.get(family, "{}").format(name.replace("_", " ")))


def section_png(columns: list[str], runs: Sequence[RunMetrics]) -> bytes:
    """A section as a PNG with three panels per row."""
    width = min(3, len(columns))
    height = -(-len(columns) // width)
    figure = Figure(figsize=(4.2 * width, 2.7 * height + 0.4), layout="constrained")
    panels = list(figure.subplots(height, width, squeeze=False).flatten())
    for axes, column in zip(panels, columns, strict=False):
        draw_column(axes, column, runs)
    for axes in panels[len(columns) :]:
        axes.set_axis_off()
    add_legend(figure, runs, panels[: len(columns)])
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=140)
    return file.getvalue()


def add_legend(figure: Figure, runs: Sequence[RunMetrics], panels: list[Axes]) -> None:
    """Shows one line per run, from any panel that has the run, and the run's name.

    The names are set afterwards: matplotlib leaves out labels that begin with _ and reads those with $ as formulas.
    """
    lines = {str(line.get_gid()).rpartition("--run")[2]: line for axes in panels for line in axes.get_lines()}
    drawn = [(lines[str(i)], run.name) for i, run in enumerate(runs) if str(i) in lines]
    legend = figure.legend(
        [line for line, _ in drawn], [" "] * len(drawn), loc="outside upper left", ncols=min(len(runs), 4), frameon=False
    )
    for text, (_, name) in zip(legend.get_texts(), drawn, strict=True):
        text.set_parse_math(False)
        text.set_text(name)


def panel_svg(column: str, runs: Sequence[RunMetrics]) -> str:
    """One panel as SVG for the page. The id of a curve ends with the number of its run."""
    figure = Figure(figsize=(4.2, 2.7), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    draw_column(axes, column, runs)
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": column}):  # ids must differ between the panels of the page
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue().split("?>", 1)[-1].split('.dtd">', 1)[-1].strip()


# ---------------------------------------------------------------------------------------------------------------- page


def page_html(runs: Sequence[RunMetrics], panels: dict[str, list[str]]) -> str:
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    rows = [{"name": run.name, "colour": COLOURS[i % len(COLOURS)], **summarize(run)} for i, run in enumerate(runs)]
    return environment.get_template("plot.html").render(runs=rows, panels=panels)


def summarize(run: RunMetrics) -> dict[str, Any]:
    """The run's row in the page's table: its progress, its median speed, its best and last validation."""
    speeds = [speed for speed in run.curve("images_per_second")[1] if math.isfinite(speed)]
    return {
        "step": run.rows[-1]["step"] if run.rows else 0,
        "images": run.rows[-1].get("images", 0) if run.rows else 0,
        "speed": sorted(speeds)[len(speeds) // 2] if speeds else None,
        "scores": list(best_scores(run)),
    }


def best_scores(run: RunMetrics) -> Iterator[dict[str, Any]]:
    for column in section_columns("validation", [run]):
        name, rows = column.removeprefix("validation/"), [row for row in run.rows if math.isfinite(drawable(row.get(column)))]
        better = better_direction(name)
        if rows and better:
            best = (max if better == "higher" else min)(rows, key=lambda row: row[column])
            yield {"name": name, "best": best[column], "step": best["step"], "last": rows[-1][column]}
