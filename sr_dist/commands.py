"""What `evaluate`, `export`, `interpolate`, `upscale`, `plot`, ... are asked for, and what can be refused without torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from sr_dist.core import plugins
from sr_dist.core.config import Absent, Names, Settings, SettingsType, listed, section, typed
from sr_dist.core.config import OptionalText as Text
from sr_dist.core.errors import UserError, nearest
from sr_dist.core.plugins import PACKAGES
from sr_dist.data.remote.sources import is_remote, open_shards
from sr_dist.data.select import PARTS, Portion
from sr_dist.recipe.sections import Split

Positive = Annotated[int, Field(gt=0)]
Scale = Annotated[Positive | None, Absent]  # for weights that do not show it
BASELINES = ("nearest", "bilinear", "bicubic")
PROTOCOLS = ("matlab-y", "basicsr", "rgb-float")
FAMILIAR = ("psnr", "ssim", "lpips", "fid", "kid")
FORMATS = ("png", "jpg", "webp", "tif")
ONNX_NEEDS = ("onnx", "onnxscript", "onnxruntime")


class Evaluation(Settings):
    """What `sr_dist.evaluate` is asked for."""

    methods: Names
    data: str
    scale: Annotated[Positive | None, Absent] = None
    protocol: str = "matlab-y"
    degradation: str = "bicubic"
    lr: Text = None
    split: Annotated[Split, BeforeValidator(listed)] = ()  # as data.split of a recipe has it
    part: Literal["training", "validation", "test"] | None = None  # of the split
    select: Annotated[dict[str, Positive], BeforeValidator(section)] = {}  # as data.select of a recipe has it
    limit: Annotated[Positive | None, Absent] = None
    attributes: Names = ()  # finished classifiers
    metrics: Names = ()  # all of them
    resize: Literal["clean", "legacy_pytorch"] = "clean"
    extractor: Text = None
    cache: str = ""  # of HR features; `none` keeps none
    allow_download: bool = False
    out: str | None = None
    batch: Positive = 8
    workers: Annotated[int, Field(ge=0)] = 0

    def check(self) -> None:
        """What can be said before torch is loaded."""
        if not self.methods:
            raise UserError("METHOD: name a run folder, a weights file, or bicubic")
        if self.protocol not in PROTOCOLS:
            raise UserError(f"protocol: no '{self.protocol}'{nearest(self.protocol, PROTOCOLS)}")
        if self.out and Path(self.out).exists() and not Path(self.out).is_dir():
            raise UserError(f"out: '{self.out}' is a file; a report needs a folder")
        if twice(self.methods, BASELINES):
            raise UserError(f"METHOD: '{','.join(self.methods)}' names a method twice")
        for name in self.methods:
            if name not in BASELINES and not Path(name).exists():
                near = [str(p) for p in Path(name).parent.glob("*")] if Path(name).parent.is_dir() else []
                raise UserError(f"METHOD: no run folder or weights file '{name}'{nearest(name, [*BASELINES, *near])}")
        if is_remote(self.data) or (not Path(self.data).exists() and "{" not in self.data):
            open_shards(self.data, "data")  # says what is missing, and the nearest name
        for key, place in (("lr", self.lr), ("extractor", self.extractor), *(("attributes", run) for run in self.attributes)):
            if place:
                there(place, key)
        if twice(self.attributes):
            raise UserError(f"attributes: '{','.join(self.attributes)}' names a classifier twice")
        self._check_part()
        plugins.check(PACKAGES["degradation"], self.degradation, {}, "degradation")
        for name in self.metrics:
            plugins.locate(PACKAGES["metric"], name, "metrics")
        if self.scale is None and set(self.methods) <= set(BASELINES):
            raise UserError("scale: no METHOD says it; give --scale=N")

    def _check_part(self) -> None:
        parts = PARTS[: len(self.split)]
        if self.part and not parts:
            raise UserError(f"part: {self.part} of what? Give --split as data.split in the recipe that was trained")
        if parts and self.part not in parts:
            raise UserError(f"part: {self.part or 'missing'}; the split {list(self.split)} has {', '.join(parts)}")

    @property
    def portion(self) -> Portion | None:
        if not self.split and not self.select:
            return None
        return Portion(self.select, self.split, PARTS.index(self.part) if self.part else 0, "select")

    def all_metrics(self) -> list[str]:
        """Those that are asked for, or all: the familiar ones first."""
        order = {name: place for place, name in enumerate(FAMILIAR)}
        return list(self.metrics) or sorted(plugins.names(PACKAGES["metric"]), key=lambda name: order.get(name, len(order)))


class Exporting(Settings):
    source: str
    out: str
    scale: Scale = None

    def check(self) -> None:
        there(self.source, "RUN")
        out_file(self.out, (".safetensors", ".pth", ".onnx"))


class Interpolating(Settings):
    a: str
    b: str
    out: str
    alpha: Annotated[float, Field(ge=0, le=1)]
    scale: Scale = None

    def check(self) -> None:
        there(self.a, "A")
        there(self.b, "B")
        out_file(self.out, (".safetensors", ".pth", ".onnx"))


class Upscaling(Settings):
    source: str
    input: str
    output: str
    tile: Annotated[Positive | None, Absent] = None
    overlap: Annotated[int, Field(ge=0)] = 32
    format: Literal["png", "jpg", "webp", "tif"] | None = None
    overwrite: bool = False
    scale: Scale = None

    def check(self) -> None:
        there(self.source, "RUN_OR_WEIGHTS")
        there(self.input, "INPUT")
        out, suffix = Path(self.output), Path(self.output).suffix.lower().replace("jpeg", "jpg")
        if Path(self.input).is_dir():
            if out.exists() and not out.is_dir():
                raise UserError(f"OUTPUT: '{out}' is a file, but INPUT is a folder; name a folder")
        elif not out.is_dir() and suffix.lstrip(".") not in FORMATS:
            raise UserError(f"OUTPUT: '{out}' has no suffix of an image ({', '.join('.' + name for name in FORMATS)})")
        elif not out.is_dir() and self.format and suffix != f".{self.format}":
            raise UserError(f"format: {self.format}, but OUTPUT is '{out}'; leave one of them out")


class Examination(Settings):
    """What `sr_dist.doctor` is asked for."""

    runs: str = "runs"

    def check(self) -> None:
        if Path(self.runs).exists() and not Path(self.runs).is_dir():
            raise UserError(f"runs: '{self.runs}' is a file; run folders need a folder")


class Boarding(Settings):
    """What `sr_dist.dashboard` is asked for."""

    project: str
    name: str = "sr_dist"

    def check(self) -> None:
        if len([part for part in self.project.split("/") if part]) != 2:
            raise UserError(f"ENTITY/PROJECT: '{self.project}' is not a W&B user or team and a project with / between them")
        if importlib.util.find_spec("wandb_workspaces") is None:
            raise UserError("ENTITY/PROJECT: this needs wandb-workspaces: pip install 'sr_dist[dashboard]'")


class Plotting(Settings):
    """What `sr_dist.plot` is asked for."""

    runs: Names
    out: str | None = None

    def check(self) -> None:
        if not self.runs:
            raise UserError("RUN: name a run folder, or several with commas between them")
        if twice(self.runs):
            raise UserError(f"RUN: '{','.join(self.runs)}' names a run twice")
        for run in self.runs:
            there(run, "RUN")
            record = Path(run) / "metrics.jsonl"
            if not record.is_file():
                raise UserError(f"RUN: '{run}' is no run folder; it has no metrics.jsonl")
            if not record.read_text(encoding="utf-8").strip():
                raise UserError(f"RUN: '{run}' has no rows yet; the first comes with step log_every of its recipe")
        if self.out and Path(self.out).exists() and not Path(self.out).is_dir():
            raise UserError(f"out: '{self.out}' is a file; the curves need a folder")

    @property
    def folder(self) -> Path:
        """A run's curves are kept with it; those of several runs belong to none."""
        return Path(self.out) if self.out else Path(self.runs[0]) / "curves" if len(self.runs) == 1 else Path("curves")


def asked(model: type[SettingsType], options: Mapping[str, str], **words: str) -> SettingsType:
    """The words and options of a command as its settings; a word is not given a second time as an option."""
    for name in words:
        if name in options:
            raise UserError(f"{name}: this is a word of the command, not an option; --help shows how to call it")
    return typed(model, {**options, **words})


def twice(names: Sequence[str], words: Sequence[str] = ()) -> bool:
    """Whether two names are of one place, however they are written; `words` are no places."""
    return len({name if name in words else str(Path(name).resolve()) for name in names}) < len(names)


def there(place: str, key: str) -> None:
    if not Path(place).exists():
        near = [str(p) for p in Path(place).parent.glob("*")] if Path(place).parent.is_dir() else []
        raise UserError(f"{key}: nothing is at '{place}'{nearest(place, near)}")


def out_file(place: str, suffixes: tuple[str, ...]) -> None:
    out = Path(place)
    if out.suffix not in suffixes:
        raise UserError(
            f"OUT: '{out}' does not end in {', '.join(suffixes[:-1])} or {suffixes[-1]}, which choose what is written"
        )
    if out.is_dir():
        raise UserError(f"OUT: '{out}' is a folder")
    missing = [name for name in ONNX_NEEDS if out.suffix == ".onnx" and importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"OUT: .onnx needs {', '.join(missing)}: pip install {' '.join(missing)}, or 'sr_dist[export]'")
