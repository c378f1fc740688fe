"""The perception-distortion curve of one GAN run: EMAs of several lengths, each mixed with the pixel stage in several shares."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sr_dist.core import config, ranks
from sr_dist.core.errors import UserError, nearest
from sr_dist.core.files import sha256
from sr_dist.core.outputs import write_output
from sr_dist.core.run_layout import POST_HOC, RECIPE, is_run
from sr_dist.evaluation.curve_page import page
from sr_dist.evaluation.intervals import student
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
PREFERRED = ("lpips_alex", "lpips_vgg", "fid")  # the first that can be computed is the perceptual axis; then any other distance
WELL_FITTED = 0.1  # a profile that the stored ones reach to 10 % of its norm is called by its length without a note
FILES = ("curve.json", "curve.md", "curve.html")


@dataclass(frozen=True)
class Grid:
    lengths: tuple[float, ...]  # of the EMA: sigma_rel
    alphas: tuple[float, ...]  # shares of the GAN: (1 - alpha) pixel + alpha GAN

    def points(self, has_pixel: bool) -> list[tuple[float | None, float]]:
        """(length, alpha). At alpha 0 there is only the pixel stage, whose length is None."""
        alphas = self.alphas if has_pixel else (1.0,)
        inner = [(length, alpha) for length in self.lengths for alpha in alphas if alpha > 0]
        return [*([(None, 0.0)] if 0.0 in alphas else []), *inner]


@dataclass(frozen=True)
class Stages:
    """A GAN run with its snapshots, and the network it began from."""

    gan: TrainedGenerator
    files: Mapping[int, Path]
    step: int
    pixel: TrainedGenerator | None

    def network(self, length: float | None, alpha: float) -> TrainedGenerator:
        """One point of the grid. Buffers, such as running statistics, are those of the newest EMA."""
        gan = self.gan if length is None else self._of_length(length)
        weights = dict(gan.network.state_dict())
        if self.pixel and alpha < 1:
            weights = between(dict(self.pixel.network.state_dict()), weights, alpha)
        network = copy.deepcopy(self.gan.network)
        network.load_state_dict(weights)
        return replace(gan, name=point_name(length, alpha), network=network, sha256=self._digest(length, alpha))

    def _of_length(self, length: float) -> TrainedGenerator:
        own = dict(self.gan.network.state_dict())
        average = averaged(self.files, length, self.step, "RUN")
        if problem := sorted(average.keys() - own.keys()):
            raise UserError(f"RUN: '{problem[0]}' of the snapshots is not in the network; are they of this run?")
        network = copy.deepcopy(self.gan.network)
        network.load_state_dict({**own, **average})
        return replace(self.gan, network=network, step=self.step)

    def _digest(self, length: float | None, alpha: float) -> str:
        facts: list[Any] = [length, alpha, self.step, self.gan.sha256, self.pixel.sha256 if self.pixel else None]
        facts += [sha256(path) for at, path in self.files.items() if at <= self.step]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


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
    start = pixel or (stated if isinstance(stated, str) and stated.lower() not in ("", "none", "null") else None)
    if start is None:
        return Stages(gan, files, max(files), None)
    first = trained.open_generator(ranks.from_first(lambda: pixel_stage(start)), "pixel", gan.scale)
    refuse_unlike(first, gan)
    return Stages(gan, files, max(files), first)


def pixel_stage(start: str) -> Weights:
    try:
        return trained.locate(start, "pixel")
    except UserError as mistake:
        raise UserError(f"{mistake}; the run began from it, and --pixel=PATH names its place") from None


def draw(stages: Stages, grid: Grid, images: ImageOptions, metrics: MetricOptions, out: Path, perception: str | None) -> None:
    """Evaluates the grid and writes the curve beside the report. All ranks must call."""
    for length in grid.lengths:
        check_length(length, "lengths")
    points = grid.points(stages.pixel is not None)
    generators = {point_name(*point): stages.network(*point) for point in points}
    words = [MethodWord(name, str(stages.gan.file), name) for name in generators]
    about = notes(stages, grid)
    if ranks.is_first() and about:
        print("\n".join(about), flush=True)
    results = ResultOptions(
        str(out), against=point_name(*points[0]), also=lambda folder: write_curve(folder, points, perception, about)
    )
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


def write_curve(out: Path, points: Sequence[tuple[float | None, float]], perception: str | None, notes: Sequence[str]) -> None:
    report = json.loads((out / REPORT).read_text())
    rows = [json.loads(line) for line in (out / report["images"]).read_text().splitlines()]
    axis = perceptual_axis(report, perception)
    table_of_points = [point_row(point, report, rows, axis) for point in points]
    best = frontier(table_of_points, axis)
    for row in table_of_points:
        row["on_frontier"] = row["name"] in best
    tree = {"distortion": DISTORTION, "perception": axis, "n": report["n"], "points": table_of_points, "notes": list(notes)}
    text = markdown(tree)
    for name, content in zip(FILES, (json.dumps(tree, indent=1) + "\n", text + "\n", page(tree)), strict=True):
        write_output(out / name, content.encode(), "out")
    print(text)
    print(f"curve: {out / 'curve.html'}")


HIGHER = ("ssim_y", "ssim_rgb", "psnr_rgb")  # columns of which more is better, if one of them is the axis


def perceptual_axis(report: Mapping[str, Any], wanted: str | None) -> str:
    columns = list(next(iter(report["methods"].values())))
    if wanted:
        if wanted not in columns:
            raise UserError(f"perception: no column '{wanted}'{nearest(wanted, columns)}")
        return wanted
    for column in (*PREFERRED, *report["distances"], *(c for c in columns if c.startswith("ssim"))):
        if column in columns and all(row.get(column) is not None for row in report["methods"].values()):
            return column
    raise UserError(
        "perception: no perceptual column was computed; --metrics names one, --extractor another network for distances"
    )


def point_row(point: tuple[float | None, float], report: Mapping[str, Any], rows: Sequence[Any], axis: str) -> dict[str, Any]:
    name = point_name(*point)
    result: dict[str, Any] = {"name": name, "ema": point[0], "alpha": point[1]}
    for column in (DISTORTION, axis):
        distance = report["distances"].get(column, {}).get("methods", {}).get(name)
        values = [row[column] for row in rows if row["method"] == name and row.get(column) is not None]
        low, high = (distance["low"], distance["high"]) if distance else interval(values)
        result[column] = {"value": report["methods"][name][column], "low": low, "high": high}
    return result


def interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """95 % of the mean over images."""
    n = len(values)
    if n < 2:
        return None, None
    mean = sum(values) / n
    half = student(n) * (sum((value - mean) ** 2 for value in values) / (n - 1) / n) ** 0.5
    return mean - half, mean + half


def frontier(points: Sequence[Mapping[str, Any]], axis: str) -> set[str]:
    """The points that no other beats in both axes."""
    sign = 1 if axis in HIGHER else -1
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
    best = [p for p in tree["points"] if p["on_frontier"] and p["ema"] is not None]
    example = best[len(best) // 2] if best else None
    command = "To export a point: python -m sr_dist.curve RUN --export=point.safetensors"
    command += f" --ema={example['ema']:g} --alpha={example['alpha']:g}" if example else " --ema=E --alpha=A"
    blocks = [f"# {tree['distortion']} against {axis}, {tree['n']} images", table(head, rows), *tree["notes"], command]
    return "\n\n".join(block for block in blocks if block)


def export_point(stages: Stages, length: float, alpha: float, out: Path) -> str:
    """Writes the network of one point: -> a line that says what was written."""
    check_length(length, "ema")
    if alpha < 1 and stages.pixel is None:
        raise UserError(f"alpha: {alpha:g} needs the pixel stage; --pixel names it")
    network = stages.network(length, alpha)
    mixed = f"{1 - alpha:g} * {stages.pixel.name} + {alpha:g} * " if stages.pixel and alpha < 1 else ""
    return f"{mixed}{stages.gan.name} (EMA {length:g}, step {stages.step}) -> {export(network, None, out)}"
