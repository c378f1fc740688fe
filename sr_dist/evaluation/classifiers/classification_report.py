"""How right a classifier is -> classification.json for programs, classification.md for people, mistakes.png for eyes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from sr_dist.core.files import write_whole
from sr_dist.data.images import Batches
from sr_dist.evaluation.classifiers.answers import Answers, judged, worst_mistakes
from sr_dist.evaluation.contact_sheet import GAP, INK, PAPER, to_pil
from sr_dist.recipe.labels import Labels

MISTAKES, COLUMNS, SIDE = 24, 6, 128  # pictures, in a row, and pixels of each
LARGEST_TABLE = 20  # classes whose confusion is printed


@dataclass(frozen=True)
class ClassificationReport:
    run: str
    weights: dict[str, Any]  # file, sha256, step
    data: str  # what was scored, in words
    labels: Labels
    answers: Answers

    def tree(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "weights": self.weights,
            "data": self.data,
            "n": len(self.answers.images),
            "labels": {"kind": self.labels.kind, "names": list(self.labels.names)},
            "heads": judged(self.answers, self.labels),
            "mistakes": worst_mistakes(self.answers, self.labels, MISTAKES),
        }


def write(out: Path, report: ClassificationReport, batches: Batches) -> dict[str, Any]:
    """Writes the files, the JSON last, so that its presence means that all are there: -> what it says."""
    out.mkdir(parents=True, exist_ok=True)
    tree = report.tree()
    mistakes_sheet(tree["mistakes"], batches, out / "mistakes.png")
    write_whole(out / "classification.md", (markdown(tree) + "\n").encode())
    write_whole(out / "classification.json", (json.dumps(tree, indent=1) + "\n").encode())
    return tree


def markdown(tree: dict[str, Any]) -> str:
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


def _table(head: dict[str, Any]) -> list[str]:
    """Accuracy per class, with the confusion beside it where it is not too wide: a row per truth, a column per answer."""
    names = list(head["per_class"])
    shown = names if len(names) <= LARGEST_TABLE else []
    lines = ["| truth | n | accuracy | " + "".join(f"said {name} | " for name in shown), "|---" * (3 + len(shown)) + "|"]
    for name, row in zip(names, head["confusion"], strict=True):
        found = head["per_class"][name]
        cells = "".join(f"{count} | " for count in row[: len(shown)])
        lines.append(f"| {name} | {found['n']} | {_percent(found['accuracy'])} | {cells}")
    return [line.rstrip() for line in lines]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def mistakes_sheet(mistakes: list[dict[str, Any]], batches: Batches, path: Path) -> None:
    """A picture of the worst mistakes: what is true, what was said instead, how surely."""
    places = {name: i for i, name in enumerate(batches.images.names)}
    rows = max(-(-len(mistakes) // COLUMNS), 1)
    width, height = SIDE + GAP, SIDE + 32
    sheet = Image.new("RGB", (COLUMNS * width + GAP, rows * height + GAP), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for number, mistake in enumerate(mistakes):
        image, _, _ = batches.images.load(places[mistake["image"]])
        picture = to_pil(image.float() / 255)
        factor = SIDE / max(picture.size)
        shown = picture.resize(
            (max(round(picture.width * factor), 1), max(round(picture.height * factor), 1)), Image.Resampling.NEAREST
        )
        left, top = GAP + number % COLUMNS * width, GAP + number // COLUMNS * height
        sheet.paste(shown, (left, top))
        head = "" if mistake["head"] == "class" else f"{mistake['head']}: "
        pen.text((left, top + SIDE + 2), f"{head}{mistake['truth']}", INK, font)
        pen.text((left, top + SIDE + 14), f"said {mistake['said']} ({mistake['confidence']:.0%})", INK, font)
    if not mistakes:
        pen.text((GAP, GAP), "no mistakes", INK, font)
    aside = path.with_name(f".{path.name}")
    sheet.save(aside, format="PNG")
    aside.replace(path)
