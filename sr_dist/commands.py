"""What `sr_dist.export`, `sr_dist.interpolate` and `sr_dist.upscale` are asked for, and what can be refused without torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from sr_dist.config import Absent, Settings, SettingsType, typed
from sr_dist.errors import UserError, nearest

Positive = Annotated[int, Field(gt=0)]
Scale = Annotated[Positive | None, Absent]  # for weights that do not show it
FORMATS = ("png", "jpg", "webp", "tif")
ONNX_NEEDS = ("onnx", "onnxscript", "onnxruntime")


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


def asked(model: type[SettingsType], options: Mapping[str, str], **words: str) -> SettingsType:
    """The words and options of a command as its settings; a word is not given a second time as an option."""
    for name in words:
        if name in options:
            raise UserError(f"{name}: this is a word of the command, not an option; --help shows how to call it")
    return typed(model, {**options, **words})


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
