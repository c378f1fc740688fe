"""The report as one self-contained HTML page, which loads nothing."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image

from sr_dist.data.image_pairs import Batches, ImagePairs
from sr_dist.evaluation.baselines import Upscale
from sr_dist.evaluation.contact_sheet import enlarge, to_pil
from sr_dist.evaluation.report.attribute_tables import CONDITIONS
from sr_dist.evaluation.report.drawings import histograms, trade_offs
from sr_dist.evaluation.report.report import Report

EXAMPLES, SIDE = 12, 512  # images besides the extreme ones, and the most pixels of a side


def page(report: Report, examples: list[dict[str, Any]]) -> str:
    from jinja2 import Environment, PackageLoader, select_autoescape  # spares 0.1 s at the start

    environment = Environment(
        loader=PackageLoader("sr_dist.evaluation.report", "."), autoescape=select_autoescape(["html"], default=True)
    )
    environment.filters |= {"number": lambda value, column: report.number(column, value)}
    perceptual = {column: report.scores.better[column] for column in report.metrics.perceptual if column in report.columns}
    return environment.get_template("report.html").render(
        report=report,
        better=report.scores.better,
        conditions=report.conditions(),
        conditions_of_classifiers=CONDITIONS,
        protocol=report.protocol_tree(),
        examples=examples,
        places={example["name"]: number for number, example in enumerate(examples)},
        extremes=extremes(report),
        histograms=histograms(report.scores.rows, report.order, report.image_columns),
        trade_offs=trade_offs(report.methods, perceptual),
        main=_main(report),
        last=report.order[-1],
        n=len(report.names),
    )


def extremes(report: Report) -> dict[str, dict[str, tuple[str, float]]]:
    """The last method's worst and best image by every metric: {column: {"worst": (image, value), "best": ...}}."""
    result = {}
    for column in report.image_columns:
        rows = [row for row in report.scores.rows if row["method"] == report.order[-1] and row.get(column) is not None]
        if rows:
            rows.sort(key=lambda row: (row[column], row["image"]), reverse=report.scores.better[column] == "lower")
            ends = {"worst": rows[0], "best": rows[-1]}
            result[column] = {end: (row["image"], row[column]) for end, row in ends.items()}
    return result


def _main(report: Report) -> str:
    """The column that sorts the example images; empty without a metric of images."""
    return next(iter(report.image_columns), "")


def example_images(
    report: Report, batches: Batches, methods: Mapping[str, Upscale], device: torch.device
) -> list[dict[str, Any]]:
    """Some images with every method's output: the extreme ones, and others from the best to the worst gain of the last method
    over bicubic."""
    main, last = _main(report), report.order[-1]
    values = {(row["image"], row["method"]): row.get(main) for row in report.scores.rows}
    sign = -1 if report.scores.better.get(main) == "lower" else 1
    gain = {name: sign * ((values[name, last] or 0) - (values[name, "bicubic"] or 0)) for name in report.names}
    selected = _evenly(sorted(report.names, key=lambda name: (gain[name], name)))
    selected |= {image for ends in extremes(report).values() for image, _ in ends.values()}
    examples = []
    for number, group in enumerate(batches.groups):
        if selected.isdisjoint(report.names[i] for i in group):
            continue
        batch = batches[number]
        if isinstance(batch, Exception):
            raise batch
        for i, name in enumerate(batch.names):
            if name in selected:
                notes = {method: report.number(main, values[name, method]) for method in methods}
                examples.append({"name": name, "gain": gain[name], **_example(batch, i, methods, device, notes)})
    return sorted(examples, key=lambda example: -example["gain"])


def _evenly(names: list[str]) -> set[str]:
    """EXAMPLES of the names, at equal distances."""
    count = min(EXAMPLES, len(names))
    return {names[round(i * (len(names) - 1) / max(count - 1, 1))] for i in range(count)}


@torch.no_grad()
def _example(
    batch: ImagePairs, i: int, methods: Mapping[str, Upscale], device: torch.device, notes: Mapping[str, str]
) -> dict[str, Any]:
    lr, hr = batch.lr[i : i + 1], batch.hr[i]
    scale = hr.shape[-1] // lr.shape[-1]
    crop = (slice(None), slice(0, SIDE), slice(0, SIDE))
    small = enlarge(to_pil(lr[0][:, : SIDE // scale, : SIDE // scale]), scale)
    views = [{"label": "LR", "note": f"{lr.shape[-1]} x {lr.shape[-2]}", "data": _embedded(small)}]
    for method, upscale in methods.items():
        views.append({"label": method, "note": notes[method], "data": _embedded(to_pil(upscale(lr.to(device))[0][crop]))})
    views.append({"label": "HR", "note": f"{hr.shape[-1]} x {hr.shape[-2]}", "data": _embedded(to_pil(hr[crop]))})
    return {"views": views, "width": min(SIDE, hr.shape[-1]), "height": min(SIDE, hr.shape[-2])}


def _embedded(image: Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, format="PNG", compress_level=4)  # as small as with `optimize`, in a seventh of the time
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
