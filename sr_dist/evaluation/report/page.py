"""The report as one self-contained HTML page, which loads nothing."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import torch
from PIL import Image
from torch import Tensor

from sr_dist.core.outputs import write_output
from sr_dist.data.image_pairs import Batches, ImagePairs
from sr_dist.evaluation.contact_sheet import enlarge, png, to_pil
from sr_dist.evaluation.methods import Method, SavedImages, restored
from sr_dist.evaluation.report.attribute_tables import CONDITIONS
from sr_dist.evaluation.report.drawings import histograms, trade_offs
from sr_dist.evaluation.report.report import BASELINE, PICTURES, Report, described

if TYPE_CHECKING:
    from jinja2 import Environment

EXAMPLES, SIDE = 12, 512  # images besides the extreme ones, and the most pixels of a side
PAGE_BYTES = 20_000_000  # of all embedded images; base64 makes a third more of them
SMALLEST = 32  # pixels of a side below which nothing is made smaller
QUALITIES = (90, 80, 65, 50, 35)  # of WebP, where images as they are would make the page larger


def page(report: Report, examples: list[dict[str, Any]]) -> str:
    context = view(report, examples)
    return environment(report).get_template("report.html").render(title=report.order[-1], **context)


def environment(report: Report) -> Environment:
    from jinja2 import Environment, PackageLoader, select_autoescape  # spares 0.1 s at the start

    result = Environment(
        loader=PackageLoader("sr_dist.evaluation.report", "."), autoescape=select_autoescape(["html"], default=True)
    )
    result.filters |= {"number": lambda value, column: report.number(column, value), "described": described}
    return result


def view(report: Report, examples: list[dict[str, Any]], prefix: str = "") -> dict[str, Any]:
    """What the template of one set shows."""
    perceptual = {column: report.scores.better[column] for column in report.metrics.perceptual if column in report.columns}
    return {
        "report": report,
        "prefix": prefix,
        "better": report.scores.better,
        "conditions": report.conditions(),
        "conditions_of_classifiers": CONDITIONS,
        "protocol": report.protocol_tree(),
        "examples": examples,
        "places": {example["name"]: number for number, example in enumerate(examples)},
        "extremes": extremes(report),
        "histograms": histograms(report.scores.rows, report.order, report.image_columns),
        "trade_offs": trade_offs(report.methods, perceptual),
        "main": main_column(report),
        "last": report.order[-1],
        "right": right_of(report),
        "n": len(report.names),
    }


def right_of(report: Report) -> str:
    """What the methods are compared with under the slider."""
    return "HR" if report.has_hr else BASELINE


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


def main_column(report: Report) -> str:
    """The column that sorts the example images; empty without a metric of images."""
    return next(iter(report.image_columns), "")


@dataclass(frozen=True)
class Beside:
    """Where the full size of examples goes, and how many bytes of them the page may have."""

    folder: Path | None = None  # of the report; without one, examples have no full size
    part: str = ""  # the name of the set
    budget: int = PAGE_BYTES

    def put(self, method: str, image: str, pixels: Tensor) -> str:
        """Writes an image: -> its address from the page."""
        assert self.folder
        saved = SavedImages(self.folder / PICTURES, frozenset(), self.part)
        path = saved.path(method, image)
        write_output(path, png(to_pil(pixels)), "out")
        return quote(str(path.relative_to(self.folder)))


def example_images(
    report: Report, batches: Batches, methods: Mapping[str, Method], device: torch.device, beside: Beside | None = None
) -> list[dict[str, Any]]:
    """Some images with every method's output: the extreme ones, and others from the best to the worst gain of the last method
    over bicubic."""
    main, last, beside = main_column(report), report.order[-1], beside or Beside()
    values = {(row["image"], row["method"]): row.get(main) for row in report.scores.rows}
    sign = -1 if report.scores.better.get(main) == "lower" else 1
    gain = {name: sign * ((values[name, last] or 0) - (values[name, BASELINE] or 0)) for name in report.names}
    selected = _evenly(sorted(report.names, key=lambda name: (gain[name], name)))
    selected |= {image for ends in extremes(report).values() for image, _ in ends.values()}
    share = beside.budget // (len(selected) * (len(methods) + 2))
    examples = []
    for number, group in enumerate(batches.groups):
        if selected.isdisjoint(report.names[i] for i in group):
            continue
        batch = batches[number]
        if isinstance(batch, Exception):
            raise batch
        for name, one in ((name, batch.single(i)) for i, name in enumerate(batch.names) if name in selected):
            notes = {method: report.number(main, values[name, method]) for method in methods}
            images = _images(one, methods, device)
            examples.append({"name": name, "gain": gain[name], **_example(images, one, batches.scale, notes, beside, share)})
    return sorted(examples, key=lambda example: -example["gain"])


def _evenly(names: list[str]) -> set[str]:
    """EXAMPLES of the names, at equal distances."""
    count = min(EXAMPLES, len(names))
    return {names[round(i * (len(names) - 1) / max(count - 1, 1))] for i in range(count)}


@torch.no_grad()
def _images(one: ImagePairs, methods: Mapping[str, Method], device: torch.device) -> dict[str, Tensor]:
    """(3, H, W) by label: every method's, and at last HR, or bicubic's where there is none."""
    images = {name: restored(method, one, device)[0].cpu() for name, method in methods.items()}
    return {**images, "HR": images[BASELINE] if one.hr.isnan().any() else one.hr[0]}


def _example(
    images: Mapping[str, Tensor], one: ImagePairs, scale: int, notes: Mapping[str, str], beside: Beside, share: int
) -> dict[str, Any]:  # fmt: skip
    """The views of one image: LR, every method, HR. All are packed alike, in `share` bytes each."""
    hr, lr = images["HR"], one.lr[0]
    height, width = min(SIDE, hr.shape[-2]), min(SIDE, hr.shape[-1])
    top, left = one.corner or (0, 0)
    bottom, right = top + height, left + width
    small = enlarge(to_pil(lr[:, : -(-bottom // scale), : -(-right // scale)]), scale).crop((left, top, right, bottom))
    views = {"LR": small, **{name: to_pil(image[:, :height, :width]) for name, image in images.items()}}
    data, is_whole = _embedded(list(views.values()), share)
    sizes = {"LR": lr.shape, "HR": hr.shape}
    result = [
        {"label": name, "data": text, "note": notes.get(name) or f"{sizes[name][-1]} x {sizes[name][-2]}"}
        for name, text in zip(views, data, strict=True)
    ]
    if beside.folder and not (is_whole and (height, width) == tuple(hr.shape[-2:])):
        result = [{**view, "full": beside.put(view["label"], one.names[0], images.get(view["label"], lr))} for view in result]
    return {"views": result, "width": width, "height": height}


def _embedded(images: list[Image.Image], share: int) -> tuple[list[str], bool]:
    """Addresses with the images in them, and whether they have all pixels: PNG, or WebP where PNG takes more than `share` bytes
    each, made smaller where WebP does too. The page shows them in one size."""
    encoded = [png(image) for image in images]
    if sum(map(len, encoded)) <= share * len(images):
        return [_address(content, "png") for content in encoded], True
    for quality in QUALITIES:
        encoded = [_webp(image, quality) for image in images]
        if sum(map(len, encoded)) <= share * len(images):
            break
    while sum(map(len, encoded)) > share * len(images) and min(images[0].size) > SMALLEST:
        images = [image.reduce(2) for image in images]
        encoded = [_webp(image, QUALITIES[-1]) for image in images]
    return [_address(content, "webp") for content in encoded], False


def _webp(image: Image.Image, quality: int) -> bytes:
    out = io.BytesIO()
    image.save(out, format="WEBP", quality=quality)
    return out.getvalue()


def _address(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
