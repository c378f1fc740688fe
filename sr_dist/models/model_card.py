"""README.md of exported weights: a Hugging Face model card from what the run folder knows. The rest is left out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sr_dist.core import config
from sr_dist.core.files import read_regular
from sr_dist.core.json_text import parse_json, read_json
from sr_dist.core.run_layout import METRICS, RECIPE
from sr_dist.core.version import __version__
from sr_dist.models.trained import TrainedGenerator

UNKNOWN = "unknown"  # Hugging Face's word for a licence that nobody has stated
METRIC_NAMES = {"psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS", "fid": "FID", "kid": "KID"}
USE = """
```python
import sr_dist
enlarge = sr_dist.load({file!r})
sr = enlarge("small.png")   # a PIL image in, a PIL image out; also arrays, tensors, paths
```

```
python -m sr_dist.upscale {file} photos/ enlarged/
```
"""
USE_ONNX = """
```python
import onnxruntime
session = onnxruntime.InferenceSession({file!r})
sr, = session.run(None, {{"lr": lr}})   # lr: float32 (batch, {channels}, height, width), RGB in [0, 1]; sr is not clipped
```
"""


@dataclass(frozen=True)
class Card:
    generator: TrainedGenerator
    file: Path  # the exported one
    run: Path | None  # its run folder, if it comes from one
    licence: str = UNKNOWN

    @property
    def recipe(self) -> Mapping[str, Any]:
        return config.read(self.run / RECIPE) if self.run else {}

    def text(self) -> str:
        header = {key: value for key, value in self.header().items() if value not in (None, [], {})}
        blocks = [f"# {self.generator.name}", self.about(), "## Use", self.use().strip()]
        if numbers := list(self.numbers()):
            blocks += ["## Numbers", *numbers]
        if training := self.training():
            blocks += ["## Training", training]
        blocks += ["## Licence", self.licence_text()]
        return f"---\n{config.tree_text(header)}---\n\n" + "\n\n".join(blocks) + "\n"

    def header(self) -> dict[str, Any]:
        section, row = self.generator.section, self.validation()
        kinds = dict.fromkeys(column.rpartition("/")[2].partition("_")[0] for column in row)
        return {
            "license": self.licence,
            "library_name": "sr_dist",
            "pipeline_tag": "image-to-image",
            "tags": ["super-resolution", "image-super-resolution", f"x{self.generator.scale}", str(section["name"])],
            "datasets": [dataset_name(source) for source in _sources(self.recipe)],
            "metrics": [kind for kind in kinds if kind in METRIC_NAMES],
        }

    def about(self) -> str:
        generator = self.generator
        parameters = sum(p.numel() for p in generator.network.parameters())
        origin = f", step {generator.step} of the run `{generator.name}`" if generator.step is not None else ""
        options = {key: value for key, value in generator.section.items() if key != "name"}
        return (
            f"Enlarges images by {generator.scale}. Generator `{generator.section['name']}`, {parameters:,} parameters{origin}."
            f" Exported by sr_dist {__version__}.\n\nOptions: `{json.dumps(options)}`. sha256 of the file that was exported: "
            f"`{generator.sha256}`."
        )

    def use(self) -> str:
        name, channels = self.file.name, self.generator.channels
        return USE_ONNX.format(file=name, channels=channels) if self.file.suffix == ".onnx" else USE.format(file=name)

    def validation(self) -> dict[str, float]:
        """The numbers of the validation of the exported step, by column."""
        if self.run is None or not (self.run / METRICS).is_file():
            return {}
        numbers: dict[str, float] = {}
        for line in read_regular(self.run / METRICS).splitlines():
            if b'"validation/' not in line:
                continue
            try:
                row = parse_json(line)
                if row["step"] == self.generator.step:
                    numbers = {key: value for key, value in row.items() if "/" in key and isinstance(value, int | float)}
            except (ValueError, LookupError, TypeError):
                continue  # a damaged line
        return {key: value for key, value in numbers.items() if key.startswith(("validation/", "bicubic/"))}

    def numbers(self) -> Iterator[str]:
        row = self.validation()
        columns = [key.removeprefix("validation/") for key in row if key.startswith("validation/")]
        if columns:
            names = {kind: label for kind, label in (("validation", self.generator.name), ("bicubic", "bicubic"))
                     if any(f"{kind}/{column}" in row for column in columns)}  # fmt: skip
            cells = [[label, *(_number(row.get(f"{kind}/{column}")) for column in columns)] for kind, label in names.items()]
            place = self.recipe.get("data", {}).get("validation")
            where = "a part of the training data that was held out" if place in (None, "none") else f"`{place}`"
            yield f"Validation while it was trained, on {where} (8-bit images, BT.601 Y, border {self.generator.scale}):"
            yield _table(["method", *columns], cells)
        yield from self._reports()

    def _reports(self) -> Iterator[str]:
        """The reports in the run's folder that scored these weights."""
        for path in sorted(self.run.glob("eval/*/report.json")) if self.run else ():
            try:
                tree = read_json(path)
                about = {name: source["sha256"] for name, source in tree["sources"].items()}
                methods, protocol = tree["methods"], tree["protocol"]["name"]
                columns = [
                    column for column in next(iter(methods.values())) if any(row[column] is not None for row in methods.values())
                ]
                if self.generator.sha256 not in about.values():
                    continue
                own = [name for name in methods if name not in about or about[name] == self.generator.sha256]
                cells = [[name, *(_number(methods[name].get(column)) for column in columns)] for name in own]
                yield f"Evaluation of {tree['n']} images of `{tree['data']}`, protocol {protocol}:"
                yield _table(["method", *columns], cells)
            except (OSError, ValueError, LookupError, TypeError, AttributeError):
                continue  # a file of another program

    def training(self) -> str:
        recipe = self.recipe
        if not recipe.get("data"):
            return ""
        data, objective = recipe["data"], recipe.get("objective", {})
        lines = [
            f"- objective `{objective.get('name')}`: `{json.dumps({k: v for k, v in objective.items() if k != 'name'})}`",
            f"- data: {', '.join(f'`{source}`' for source in _sources(recipe))}; HR crops of {data.get('crop')}, "
            f"{data.get('batch')} images per step, LR by `{_name(data.get('degradation'))}`",
            f"- {recipe.get('steps')} steps planned; optimizer `{json.dumps(recipe.get('optimizer', {}))}`",
            f"- weights are the moving average (EMA) with decay {recipe.get('ema', {}).get('decay')}",
        ]
        start = recipe.get("init", {}).get("generator")
        if start not in (None, "none"):
            lines.append(f"- started from `{start}`")
        return "\n".join(lines)

    def licence_text(self) -> str:
        if self.licence == UNKNOWN:
            return "Not stated. Whoever publishes these weights states it, with regard to the licences of the training data."
        return f"{self.licence}, as stated by whoever exported these weights."


def dataset_name(source: str) -> str:
    """`data/div2k/train` -> div2k: the last folder that is no part of a set."""
    parts = [part for part in re.split(r"[/\\]", source) if part and not re.search(r"[{}:*]|\.tar$", part)]
    names = [part for part in parts if part not in ("train", "training", "data", "validation", ".", "..")]
    return re.sub(r"[^\w.-]+", "-", names[-1] if names else source).strip("-") or "data"


def _sources(recipe: Mapping[str, Any]) -> Sequence[str]:
    train = recipe.get("data", {}).get("train", ())
    return [str(train)] if isinstance(train, str) else [str(source) for source in train]


def _name(section: Any) -> str:
    return str(section.get("name")) if isinstance(section, dict) else str(section or "bicubic")


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))
