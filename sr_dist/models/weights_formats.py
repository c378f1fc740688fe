"""The formats of weights files: those that are read, and those that export and interpolation write. No torch."""

from __future__ import annotations

import importlib.util
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
