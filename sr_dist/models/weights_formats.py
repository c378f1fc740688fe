"""The formats of weights files: those that are read, and those that export and interpolation write. No torch."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from sr_dist.core.errors import UserError

PICKLES = (".pth", ".pt", ".ckpt", ".tar", ".bin")  # .pth.tar ends in .tar
READ = (".safetensors", *PICKLES)
SUFFIXES = (".safetensors", ".pth", ".onnx")  # that are written
ONNX_NEEDS = ("onnx", "onnxscript", "onnxruntime")


def check_out_file(path: str) -> None:
    out = Path(path)
    if out.suffix not in SUFFIXES:
        raise UserError(f"OUT: '{out}' does not end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, which choose the format")
    if out.is_dir():
        raise UserError(f"OUT: '{out}' is a folder")
    missing = [name for name in ONNX_NEEDS if out.suffix == ".onnx" and importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"OUT: .onnx needs {', '.join(missing)}: pip install {' '.join(missing)}, or 'sr_dist[export]'")


def is_out_folder(path: str) -> bool:
    """Whether an OUT is a folder that gets the weights and their card. A name without a suffix that does not exist is refused."""
    return path.endswith("/") or (Path(path).is_dir() and Path(path).suffix not in SUFFIXES)


def check_licence(licence: str) -> None:
    """An identifier such as Hugging Face's."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence):
        raise UserError(f"license: '{licence}' is not an identifier in lower case, such as apache-2.0, cc-by-4.0, mit or other")
