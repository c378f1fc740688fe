"""The perception-distortion curve of one GAN run: EMAs of several lengths, each mixed with the pixel stage in several shares."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sr_dist.core import config, ranks
from sr_dist.core.errors import UserError, nearest, renamed_key
from sr_dist.core.files import sha256
from sr_dist.core.outputs import write_output
from sr_dist.core.printable import plural
from sr_dist.core.run_layout import POST_HOC, RECIPE, is_run
from sr_dist.evaluation.curve_page import page
from sr_dist.evaluation.intervals import mean_interval
from sr_dist.evaluation.metric_set import Metrics, SetMetric
from sr_dist.evaluation.report.markdown import table
from sr_dist.evaluation.report.report import REPORT
from sr_dist.evaluation.run import ImageOptions, MetricOptions, ResultOptions, evaluate_opened
from sr_dist.evaluation.words import MethodWord
from sr_dist.models import trained
from sr_dist.models.export import write as export
from sr_dist.models.interpolate import between, refuse_unlike
from sr_dist.models.post_hoc_ema import SIGMAS, Profile, averaged, check_length, misfit, snapshots
from sr_dist.models.trained import TrainedGenerator, Weights

DISTORTION = "psnr_y"
PREFERRED = ("lpips_alex", "lpips_vgg", "fid")  # the first that can be computed is the perceptual axis; then see `candidates`
WELL_FITTED = 0.1  # a profile that the stored ones reach to 10 % of its norm is called by its length without a note
FILES = ("curve.json", "curve.md", "curve.html")
NO_AXIS = "perception: no perceptual column can be computed; --metrics names one, --extractor another network for distances"


@dataclass(frozen=True)
class Grid:
    lengths: tuple[float, ...]  # of the EMA: sigma_rel
    alphas: tuple[float, ...]  # shares of the GAN: (1 - alpha) pixel + alpha GAN

    def points(self, has_pixel: bool) -> list[tuple[float | None, float]]:
        """(length, alpha). At alpha 0 there is only the pixel stage, whose length is None."""
        alphas = self.alphas if has_pixel else (1.0,)
        inner = [(length, alpha) for length in self.lengths for alpha in alphas if alpha > 0]
        return [*([(None, 0.0)] if 0.0 in alphas else []), *inner]


class Mixed(nn.Module):
    """(1 - alpha) pixel + alpha GAN, mixed when it is called, into a network that all points of a grid share."""

    def __init__(self, pixel: nn.Module, gan: nn.Module, alpha: float, shared: nn.Module) -> None:
        super().__init__()
        self.shared = shared
        self._ends, self._alpha = (pixel, gan), alpha  # a tuple: these are no parts of this module and have no parameters in it

    def forward(self, lr: Tensor) -> Tensor:
        pixel, gan = (dict(end.to(lr.device).state_dict()) for end in self._ends)
        self.shared.load_state_dict(between(pixel, gan, self._alpha))
        output: Tensor = self.shared(lr)
        return output


@dataclass(frozen=True)
class Stages:
    """A GAN run with its snapshots, and the network it began from."""

    words: tuple[str, ...]  # RUN and --pixel, as the user gave them
    gan: TrainedGenerator
    files: Mapping[int, Path]
    step: int
    pixel: TrainedGenerator | None
    averages: dict[float, nn.Module] = field(default_factory=dict)  # by length, as they are needed

    @cached_property
    def shared(self) -> nn.Module:
        return copy.deepcopy(self.gan.network)

    def point(self, length: float | None, alpha: float) -> TrainedGenerator:
        """One point of the grid. It holds no weights that another point has, too."""
        network = self.gan.network if length is None else self.average(length)
        if self.pixel and alpha < 1:
            mixed = Mixed(self.pixel.network, network, alpha, self.shared)
            network = self.pixel.network if alpha == 0 else mixed
        step = self.gan.step if length is None else self.step
        name, digest = point_name(length, alpha), self._digest(length, alpha)
        return replace(self.gan, name=name, step=step, network=network, sha256=digest)

    def network(self, length: float, alpha: float) -> TrainedGenerator:
        """One point with weights of its own."""
        point, network = self.point(length, alpha), self.average(length)
        if self.pixel and alpha < 1:
            weights = between(dict(self.pixel.network.state_dict()), dict(network.state_dict()), alpha)
            network = copy.deepcopy(self.gan.network)
            network.load_state_dict(weights)
        return replace(point, network=network)

    def average(self, length: float) -> nn.Module:
        """The EMA of a length. Buffers, such as running statistics, are those of the newest EMA."""
        if length not in self.averages:
            own = dict(self.gan.network.state_dict())
            average = averaged(self.files, length, self.step, "RUN")
            if problem := sorted(average.keys() - own.keys()):
                raise UserError(f"RUN: '{problem[0]}' of the snapshots is not in the network; are they of this run?")
            network = copy.deepcopy(self.gan.network)
            network.load_state_dict({**own, **average})
            self.averages[length] = network
        return self.averages[length]

    @cached_property
    def _digests(self) -> list[str]:
        return [sha256(path) for at, path in self.files.items() if at <= self.step]

    def _digest(self, length: float | None, alpha: float) -> str:
        facts: list[Any] = [length, alpha, self.step, self.gan.sha256, self.pixel.sha256 if self.pixel else None]
        return hashlib.sha256(json.dumps([*facts, *self._digests]).encode()).hexdigest()


def point_name(length: float | None, alpha: float) -> str:
    return "pixel" if length is None else f"ema{length:g}_a{alpha:g}"


def open_stages(run: str, pixel: str | None) -> Stages:
    """The snapshots of a run with `ema.post_hoc`, and its pixel stage: the named one, or init.generator of its recipe.

    All ranks must call.
    """
    folder = Path(run)
    if not is_run(folder):
        raise UserError(f"RUN: '{run}' is no run folder")
    gan, files = trained.open_generator(ranks.from_first(lambda: trained.locate(run, "RUN")), "RUN"), snapshots(folder)
    files = {at: path for at, path in files.items() if gan.step is None or at <= gan.step}
    if not files:
        raise UserError(f"RUN: '{folder / POST_HOC}' has no averages; they are kept by a training with ema.post_hoc=true")
    stated = config.read(folder / RECIPE).get("init", {}).get("generator")
    words = (run, f"--pixel={pixel}") if pixel else (run,)
    start = pixel or (stated if isinstance(stated, str) and stated.lower() not in ("", "none", "null") else None)
    if start is None:
        return Stages(words, gan, files, max(files), None)
    first = trained.open_generator(ranks.from_first(lambda: pixel_stage(start, stated=pixel is not None)), "pixel", gan.scale)
    refuse_unlike(first, gan)
    return Stages(words, gan, files, max(files), first)


def pixel_stage(start: str, stated: bool) -> Weights:
    """`stated`: by the user; else by the recipe."""
    try:
        return trained.locate(start, "pixel")
    except UserError as mistake:
        if stated:
            raise
        raise UserError(f"{mistake}; the run began from it, and --pixel=PATH names its place") from None


def draw(stages: Stages, grid: Grid, images: ImageOptions, metrics: MetricOptions, out: Path, perception: str | None) -> None:
    """Evaluates the grid and writes the curve beside the report. All ranks must call."""
    for length in grid.lengths:
        check_length(length, "lengths")
    points = grid.points(stages.pixel is not None)
    generators = {point_name(*point): stages.point(*point) for point in points}
    words = [MethodWord(name, str(stages.gan.file), name) for name in generators]
    about = notes(stages, grid)
    if ranks.is_first() and about:
        print("\n".join(about), flush=True)
    drawing = Drawing(points, perception, about, stages.words)
    results = ResultOptions(str(out), against=point_name(*points[0]), accept=drawing.choose_axes, also=drawing.write)
    evaluate_opened(words, generators, {"": images}, metrics, stages.gan.scale, results)


def notes(stages: Stages, grid: Grid) -> list[str]:
    """How well each length can be made of the snapshots."""
    stored = [Profile(step, sigma) for step in stages.files for sigma in SIGMAS]
    lines = []
    for length in grid.lengths:
        if (missing := misfit(stored, Profile(stages.step, length))) > WELL_FITTED:
            lines.append(
                f"note: the profile of EMA {length:g} is missed by {missing:.0%} with {len(stages.files)} snapshots; "
                f"more checkpoints (save_every) fit it better"
            )
    return lines


@dataclass
class Drawing:
    """The curve of a grid: its axis is checked before the grid is scored, and it is written beside the report."""

    points: Sequence[tuple[float | None, float]]
    perception: str | None
    notes: Sequence[str]
    words: Sequence[str]  # of the command that exports a point
    axes: Sequence[str] = ()  # the columns that may be the perceptual axis, best first

    def choose_axes(self, metrics: Metrics) -> None:
        self.axes = candidates(metrics, self.perception)

    def write(self, out: Path) -> None:
        tree = self.tree(json.loads((out / REPORT).read_text()), out)
        text = "\n\n".join(filter(None, (markdown(tree), self.hint(tree))))
        for name, content in zip(FILES, (json.dumps(tree, indent=1) + "\n", text + "\n", page(tree)), strict=True):
            write_output(out / name, content.encode(), "out")
        print(text)
        print(f"curve: {out / 'curve.html'}")

    def tree(self, report: Mapping[str, Any], out: Path) -> dict[str, Any]:
        axis = self._axis(report["methods"])
        better = report["metrics"][axis]["better"]
        rows = [json.loads(line) for line in (out / report["images"]).read_text().splitlines()]
        points = [point_row(point, report, rows, axis) for point in self.points]
        best = frontier(points, axis, better)
        for row in points:
            row["on_frontier"] = row["name"] in best
        about = {"distortion": DISTORTION, "perception": axis, "better": better}
        return {**about, "n": report["n"], "points": points, "notes": list(self.notes)}

    def hint(self, tree: Mapping[str, Any]) -> str:
        """How a point is exported: one of the frontier, if it is not the pixel stage."""
        points = [point for point in tree["points"] if point["ema"] is not None]
        best = [point for point in points if point["on_frontier"]] or points
        if not best:
            return ""
        point = best[len(best) // 2]
        ends = ["--export=point.safetensors", f"--ema={point['ema']:g}", f"--alpha={point['alpha']:g}"]
        return f"To export a point: python -m sr_dist.curve {shlex.join([*self.words, *ends])}"

    def _axis(self, methods: Mapping[str, Mapping[str, float | None]]) -> str:
        """The first column that all methods have. The one that is named needs one point."""
        for axis in self.axes:
            if self.perception is None and all(row[axis] is not None for row in methods.values()):
                return axis
        if self.perception is None:
            raise UserError(NO_AXIS)
        names = [point_name(*point) for point in self.points]
        for column in (DISTORTION, self.perception):
            if all(methods[name][column] is None for name in names):
                raise UserError(f"perception: '{column}' has no value; see missing in report.json")
        return self.perception


def candidates(metrics: Metrics, wanted: str | None) -> list[str]:
    """The columns that can be the perceptual axis, best first."""
    computed = [column for column in metrics.better if column not in metrics.missing]
    if wanted in metrics.missing:
        raise UserError(f"perception: '{wanted}' cannot be computed: {metrics.missing[wanted]}")
    if wanted is not None and wanted not in computed:
        raise UserError(f"perception: no column '{wanted}'{nearest(wanted, metrics.better)}")
    if wanted is not None:
        return [wanted]
    distances = [metrics.column(name, one) for one in metrics.modules if isinstance(one, SetMetric) for name in one.BETTER]
    similar = [column for column in computed if column.startswith("ssim")]
    columns = [column for column in (*PREFERRED, *distances, *metrics.perceptual, *similar) if column in computed]
    if not columns:
        raise UserError(NO_AXIS)
    return columns


def point_row(point: tuple[float | None, float], report: Mapping[str, Any], rows: Sequence[Any], axis: str) -> dict[str, Any]:
    name = point_name(*point)
    result: dict[str, Any] = {"name": name, "ema": point[0], "alpha": point[1]}
    for column in (DISTORTION, axis):
        distance = report["distances"].get(column, {}).get("methods", {}).get(name)
        values = [row[column] for row in rows if row["method"] == name and row.get(column) is not None]
        ends = (distance["low"], distance["high"]) if distance else (mean_interval(values) or (None,) * 3)[1:]
        low, high = (within(end, *report["metrics"][column]["range"]) for end in ends)
        result[column] = {"value": report["methods"][name][column], "low": low, "high": high}
    return result


def within(end: float | None, lowest: float | None, highest: float | None) -> float | None:
    """The end of an interval, inside the range of its metric. Student's interval of a few images can leave it."""
    if end is None:
        return None
    return min(max(end, -math.inf if lowest is None else lowest), math.inf if highest is None else highest)


def frontier(points: Sequence[Mapping[str, Any]], axis: str, better: str) -> set[str]:
    """The points that no other beats in both axes."""
    sign = 1 if better == "higher" else -1
    values = {point["name"]: (point[DISTORTION]["value"], point[axis]["value"]) for point in points}
    places = {name: (x, sign * y) for name, (x, y) in values.items() if x is not None and y is not None}
    return {
        name for name, (x, y) in places.items()
        if not any(other >= x and up >= y and (other, up) != (x, y) for other, up in places.values())
    }  # fmt: skip


def markdown(tree: Mapping[str, Any]) -> str:
    axis = tree["perception"]

    def cell(value: Mapping[str, float | None], digits: int) -> str:
        if value["value"] is None:
            return "-"
        ends = "" if value["low"] is None else f" [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"
        return f"{value['value']:.{digits}f}{ends}"

    rows = [
        [p["name"], "-" if p["ema"] is None else f"{p['ema']:g}", f"{p['alpha']:g}", cell(p[DISTORTION], 3), cell(p[axis], 4),
         "yes" if p["on_frontier"] else ""] for p in tree["points"]
    ]  # fmt: skip
    head = ["point", "EMA", "alpha", DISTORTION, axis, "on the frontier"]
    blocks = [f"# {tree['distortion']} against {axis}, {plural(tree['n'], 'image')}", table(head, rows), *tree["notes"]]
    return "\n\n".join(blocks)


def export_point(stages: Stages, length: float, alpha: float, out: Path, overwrite: bool) -> str:
    """Writes the network of one point: -> a line that says what was written."""
    check_length(length, "ema")
    if alpha < 1 and stages.pixel is None:
        raise UserError(f"alpha: {alpha:g} needs the pixel stage; --pixel names it")
    network = stages.network(length, alpha)
    mixed = f"{1 - alpha:g} * {stages.pixel.name} + {alpha:g} * " if stages.pixel and alpha < 1 else ""
    with renamed_key("OUT", "export"):
        return f"{mixed}{stages.gan.name} (EMA {length:g}, step {stages.step}) -> {export(network, None, out, overwrite)}"
