"""The report on a classifier: classification.json for programs, classification.md for people, mistakes.png with images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from sr_dist.core.files import write_whole
from sr_dist.core.formats import stamp
from sr_dist.core.json_text import read_json
from sr_dist.data.image_pairs import Batches
from sr_dist.evaluation.classifiers.answers import Answers, head_statistics, worst_mistakes
from sr_dist.evaluation.contact_sheet import GAP, INK, PAPER, save_png, to_pil
from sr_dist.recipe.labels import Labels

FORMAT = 1  # of classification.json; 0.1.0 wrote no number
MISTAKES, COLUMNS, SIDE = 24, 6, 128  # images, images in a row, pixels of an image
LARGEST_TABLE = 20  # the most classes whose confusion is printed


@dataclass(frozen=True)
class ClassificationReport:
    run: str
    weights: dict[str, Any]  # file, sha256, step
    data: str  # a description of the images
    labels: Labels
    answers: Answers

    def tree(self) -> dict[str, Any]:
        return {
            **stamp(FORMAT),
            "run": self.run,
            "weights": self.weights,
            "data": self.data,
            "n": len(self.answers.images),
            "labels": {"kind": self.labels.kind, "names": list(self.labels.names)},
            "heads": head_statistics(self.answers, self.labels),
            "mistakes": worst_mistakes(self.answers, self.labels, MISTAKES),
        }


def write(out: Path, report: ClassificationReport, batches: Batches) -> dict[str, Any]:
    """Writes the files and returns the content of classification.json, which is written last: it marks a complete report."""
    out.mkdir(parents=True, exist_ok=True)
    tree = report.tree()
    mistakes_sheet(tree["mistakes"], batches, out / "mistakes.png")
    write_whole(out / "classification.md", (markdown(tree) + "\n").encode())
    write_whole(out / "classification.json", (json.dumps(tree, indent=1) + "\n").encode())
    return tree


def reported_weights(out: Path) -> str | None:
    """The sha256 of the weights that a report in this folder is about; None without one. Those of a run that was trained again in
    its folder are others."""
    try:
        return read_json(out / "classification.json")["weights"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def markdown(tree: Mapping[str, Any]) -> str:
    weights = tree["weights"]
    lines = [f"# {tree['run']}", "", f"Step {weights['step']}, {tree['n']} images: {tree['data']}.", ""]
    lines += ["| head | n | accuracy | 95 % interval | balanced | cross-entropy | calibration error |", "|---" * 7 + "|"]
    for name, head in tree["heads"].items():
        low, high = head["accuracy_interval"] or (None, None)
        numbers = [_percent(head["accuracy"]), f"{_percent(low)} to {_percent(high)}", _percent(head["balanced_accuracy"])]
        loss = "-" if head["loss"] is None else f"{head['loss']:.4f}"
        lines.append(f"| {name} | {head['n']} | {' | '.join(numbers)} | {loss} | {_percent(head['ece'])} |")
    for name, head in tree["heads"].items():
        lines += ["", f"## {name}", "", *([f"**{head['warning']}**", ""] if head["warning"] else []), *_table(head)]
    return "\n".join(lines)


def _table(head: Mapping[str, Any]) -> list[str]:
    """Accuracy per class, and the confusion if there are few classes: a row per truth, a column per answer."""
    names = list(head["per_class"])
    shown = names if len(names) <= LARGEST_TABLE else []
    lines = ["| truth | n | accuracy | " + "".join(f"said {name} | " for name in shown), "|---" * (3 + len(shown)) + "|"]
    for name, row in zip(names, head["confusion"], strict=True):
        of_class = head["per_class"][name]
        cells = "".join(f"{count} | " for count in row[: len(shown)])
        lines.append(f"| {name} | {of_class['n']} | {_percent(of_class['accuracy'])} | {cells}")
    return [line.rstrip() for line in lines]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def mistakes_sheet(mistakes: list[dict[str, Any]], batches: Batches, path: Path) -> None:
    """Draws the worst mistakes with the truth, the answer and its confidence."""
    numbers = {name: i for i, name in enumerate(batches.images.names)}
    rows = max(-(-len(mistakes) // COLUMNS), 1)
    width, height = SIDE + GAP, SIDE + 32
    sheet = Image.new("RGB", (COLUMNS * width + GAP, rows * height + GAP), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for i, mistake in enumerate(mistakes):
        image, _, _ = batches.images.load(numbers[mistake["image"]])
        left, top = GAP + i % COLUMNS * width, GAP + i // COLUMNS * height
        sheet.paste(_fitted(to_pil(image.float() / 255)), (left, top))
        head = "" if mistake["head"] == "class" else f"{mistake['head']}: "
        draw.text((left, top + SIDE + 2), f"{head}{mistake['truth']}", INK, font)
        draw.text((left, top + SIDE + 14), f"said {mistake['said']} ({mistake['confidence']:.0%})", INK, font)
    if not mistakes:
        draw.text((GAP, GAP), "no mistakes", INK, font)
    save_png(sheet, path)


def _fitted(image: Image.Image) -> Image.Image:
    """The image with a longer side of SIDE pixels."""
    factor = SIDE / max(image.size)
    size = max(round(image.width * factor), 1), max(round(image.height * factor), 1)
    return image.resize(size, Image.Resampling.NEAREST)
