"""Scores -> report.json for programs, report.md for papers, report.html for eyes, images.jsonl with every row."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from sr_dist.data.validation import Batches, Scored
from sr_dist.eval.baselines import Upscale
from sr_dist.eval.pictures import enlarged, to_pil
from sr_dist.eval.protocol import Protocol
from sr_dist.eval.run import Row, better
from sr_dist.files import write_whole

PICTURES, SIDE = 12, 512  # images in the HTML page, and the most pixels they show


@dataclass(frozen=True)
class Report:
    protocol: Protocol
    data: str
    names: list[str]
    methods: dict[str, dict[str, float | None]]  # method -> metric -> mean
    sources: dict[str, Any]  # where trained methods come from
    rows: list[Row]

    def tree(self) -> dict[str, Any]:
        lacking = {
            f"{method}/{column}": "an image is too small for border or window, or what the method made of it is not finite"
            for method, values in self.methods.items() for column, value in values.items() if value is None
        }  # fmt: skip
        return {
            "protocol": self.protocol.describe(),
            "data": self.data,
            "n": len(self.names),
            "methods": self.methods,
            "missing": lacking,
            "sources": self.sources,
            "images": "images.jsonl",
            "tool": {name: metadata.version(name) for name in ("torch", "torchmetrics", "numpy", "pillow")},
        }


def write(out: Path, report: Report, batches: Batches, methods: Mapping[str, Upscale], device: torch.device) -> None:
    """Writes the four files; report.json last, so that its presence means that all are there."""
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "images.jsonl", "".join(json.dumps(row) + "\n" for row in report.rows).encode())
    write_whole(out / "report.md", (markdown(report) + "\n").encode())
    write_whole(out / "report.html", page(report, pictures(report, batches, methods, device)).encode())
    write_whole(out / "report.json", (json.dumps(report.tree(), indent=1) + "\n").encode())


def markdown(report: Report) -> str:
    """The table with its conditions; the best value of every column is bold."""
    columns = list(better())
    lines = ["| method | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for method, values in report.methods.items():
        cells = [_cell(column, values[column], report.methods) for column in columns]
        lines.append(f"| {_plain(method)} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", conditions(report)])


def _plain(name: str) -> str:
    return name.replace("|", "\\|")


def conditions(report: Report) -> str:
    rules = report.protocol
    rounding = "8-bit images" if rules.eight_bit else "floats, not rounded"
    luma = "rounded BT.601 Y" if rules.rounded_luma else "unrounded BT.601 Y"
    return (
        f"x{rules.scale}, {len(report.names)} images of {report.data}; protocol {rules.name}: {luma} and RGB, "
        f"border {rules.border}, {rounding}, mean of per-image values."
    )


def _cell(column: str, value: float | None, methods: Mapping[str, Mapping[str, float | None]]) -> str:
    if value is None:
        return "-"
    text = f"{value:.2f}" if column.startswith("psnr") else f"{value:.4f}"
    return f"**{text}**" if value == best(column, methods) else text


def best(column: str, methods: Mapping[str, Mapping[str, float | None]]) -> float | None:
    there = [value for values in methods.values() if (value := values[column]) is not None]
    return (max if better()[column] == "higher" else min)(there, default=None)


def pictures(report: Report, batches: Batches, methods: Mapping[str, Upscale], device: torch.device) -> list[dict[str, Any]]:
    """Some images with what every method made of them: evenly from the best to the worst by the last method's gain on bicubic."""
    last = list(methods)[-1]
    psnr = {(row["image"], row["method"]): row["psnr_y"] for row in report.rows}
    gain = {name: (psnr[name, last] or 0) - (psnr[name, "bicubic"] or 0) for name in report.names}
    by_gain = sorted(report.names, key=lambda name: (gain[name], name))
    count = min(PICTURES, len(by_gain))
    chosen = {by_gain[round(i * (len(by_gain) - 1) / max(count - 1, 1))] for i in range(count)}
    found = []
    for number, group in enumerate(batches.groups):
        if chosen.isdisjoint(report.names[i] for i in group):
            continue
        batch = batches[number]
        if isinstance(batch, Exception):
            raise batch
        found += [_shown(batch, i, methods, device, psnr, gain) for i, name in enumerate(batch.names) if name in chosen]
    return sorted(found, key=lambda picture: -picture["gain"])


@torch.no_grad()
def _shown(
    batch: Scored,
    i: int,
    methods: Mapping[str, Upscale],
    device: torch.device,
    psnr: Mapping[tuple[str, str], Any],
    gain: Mapping[str, float],
) -> dict[str, Any]:
    lr, hr, name = batch.lr[i : i + 1], batch.hr[i], batch.names[i]
    scale = hr.shape[-1] // lr.shape[-1]
    crop = (slice(None), slice(0, SIDE), slice(0, SIDE))
    small = SIDE // scale
    views = [
        {
            "label": "LR",
            "note": f"{lr.shape[-1]} x {lr.shape[-2]}",
            "data": _embedded(enlarged(to_pil(lr[0][:, :small, :small]), scale)),
        }
    ]
    for method, upscale in methods.items():
        sr = upscale(lr.to(device))[0]
        value = psnr[name, method]
        views.append({"label": method, "note": "-" if value is None else f"{value:.2f} dB", "data": _embedded(to_pil(sr[crop]))})
    views.append({"label": "HR", "note": f"{hr.shape[-1]} x {hr.shape[-2]}", "data": _embedded(to_pil(hr[crop]))})
    return {"name": name, "gain": gain[name], "views": views, "width": min(SIDE, hr.shape[-1]), "height": min(SIDE, hr.shape[-2])}


def _embedded(image: Any) -> str:
    out = io.BytesIO()
    image.save(out, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def page(report: Report, shown: list[dict[str, Any]]) -> str:
    """One self-contained page: no address in it leads anywhere else."""
    from jinja2 import Environment, PackageLoader, select_autoescape

    environment = Environment(loader=PackageLoader("sr_dist.eval", "."), autoescape=select_autoescape(["html"], default=True))
    columns = list(better())
    return environment.get_template("report.html").render(
        columns=columns,
        methods=report.methods,
        sources=report.sources,
        best={column: best(column, report.methods) for column in columns},
        better=better(),
        conditions=conditions(report),
        protocol=report.protocol.describe(),
        pictures=shown,
        last=list(report.methods)[-1],
        n=len(report.names),
    )
