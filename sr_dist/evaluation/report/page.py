"""The report as one self-contained page: no address in it leads anywhere else."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import torch

from sr_dist.data.images import Batches, Scored
from sr_dist.evaluation.baselines import Upscale
from sr_dist.evaluation.contact_sheet import enlarged, to_pil
from sr_dist.evaluation.report import report as words
from sr_dist.evaluation.report.attribute_tables import CONDITIONS
from sr_dist.evaluation.report.drawings import histograms, trade_offs
from sr_dist.evaluation.report.report import Report

PICTURES, SIDE = 12, 512  # images shown beside the extreme ones, and the most pixels of each


def page(report: Report, shown: list[dict[str, Any]]) -> str:
    from jinja2 import Environment, PackageLoader, select_autoescape

    environment = Environment(
        loader=PackageLoader("sr_dist.evaluation.report", "."), autoescape=select_autoescape(["html"], default=True)
    )
    environment.filters |= {"number": lambda value, column: words.number(column, value)}
    return environment.get_template("report.html").render(
        report=report,
        words=words,
        better=report.scores.better,
        conditions=words.conditions(report),
        conditions_of_classifiers=CONDITIONS,
        protocol={**report.protocol.describe(), **report.conditions_of_features()},
        pictures=shown,
        places={picture["name"]: place for place, picture in enumerate(shown)},
        extremes=extremes(report),
        histograms=histograms(report.scores.rows, report.order, report.image_columns),
        trade_offs=trade_offs(report.methods, report.columns),
        main=_main(report),
        last=report.order[-1],
        n=len(report.names),
    )


def extremes(report: Report) -> dict[str, dict[str, tuple[str, float]]]:
    """Every metric's worst and best image of the last method: {column: {"worst": (image, value), "best": ...}}."""
    found = {}
    for column in report.image_columns:
        rows = [row for row in report.scores.rows if row["method"] == report.order[-1] and row.get(column) is not None]
        if rows:
            rows.sort(key=lambda row: (row[column], row["image"]), reverse=report.scores.better[column] == "lower")
            ends = {"worst": rows[0], "best": rows[-1]}
            found[column] = {end: (row["image"], row[column]) for end, row in ends.items()}
    return found


def _main(report: Report) -> str:
    """The column by which pictures are ordered; none where no metric is of an image."""
    return next(iter(report.image_columns), "")


def pictures(report: Report, batches: Batches, methods: Mapping[str, Upscale], device: torch.device) -> list[dict[str, Any]]:
    """Some images with what every method made of them: the extreme ones, and evenly from the best to the worst by the last
    method's gain on bicubic."""
    main, last = _main(report), report.order[-1]
    values = {(row["image"], row["method"]): row.get(main) for row in report.scores.rows}
    sign = -1 if report.scores.better.get(main) == "lower" else 1
    gain = {name: sign * ((values[name, last] or 0) - (values[name, "bicubic"] or 0)) for name in report.names}
    by_gain = sorted(report.names, key=lambda name: (gain[name], name))
    count = min(PICTURES, len(by_gain))
    chosen = {by_gain[round(i * (len(by_gain) - 1) / max(count - 1, 1))] for i in range(count)}
    chosen |= {image for ends in extremes(report).values() for image, _ in ends.values()}
    found = []
    for number, group in enumerate(batches.groups):
        if chosen.isdisjoint(report.names[i] for i in group):
            continue
        batch = batches[number]
        if isinstance(batch, Exception):
            raise batch
        for i, name in enumerate(batch.names):
            if name in chosen:
                notes = {method: words.number(main, values[name, method]) for method in methods}
                found.append({"name": name, "gain": gain[name], **_shown(batch, i, methods, device, notes)})
    return sorted(found, key=lambda picture: -picture["gain"])


@torch.no_grad()
def _shown(
    batch: Scored, i: int, methods: Mapping[str, Upscale], device: torch.device, notes: Mapping[str, str]
) -> dict[str, Any]:
    lr, hr = batch.lr[i : i + 1], batch.hr[i]
    scale = hr.shape[-1] // lr.shape[-1]
    crop = (slice(None), slice(0, SIDE), slice(0, SIDE))
    small = enlarged(to_pil(lr[0][:, : SIDE // scale, : SIDE // scale]), scale)
    views = [{"label": "LR", "note": f"{lr.shape[-1]} x {lr.shape[-2]}", "data": _embedded(small)}]
    for method, upscale in methods.items():
        views.append({"label": method, "note": notes[method], "data": _embedded(to_pil(upscale(lr.to(device))[0][crop]))})
    views.append({"label": "HR", "note": f"{hr.shape[-1]} x {hr.shape[-2]}", "data": _embedded(to_pil(hr[crop]))})
    return {"views": views, "width": min(SIDE, hr.shape[-1]), "height": min(SIDE, hr.shape[-2])}


def _embedded(image: Any) -> str:
    out = io.BytesIO()
    image.save(out, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
