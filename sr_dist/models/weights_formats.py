"""The formats of weights files: those that are read, and those that export and interpolation write. No torch."""

from __future__ import annotations

import difflib
import importlib.util
import re
from pathlib import Path

from sr_dist.core.errors import UserError

PICKLES = (".pth", ".pt", ".ckpt", ".tar", ".bin")  # .pth.tar ends in .tar
READ = (".safetensors", *PICKLES)
SUFFIXES = (".safetensors", ".pth", ".onnx")  # that are written
LICENCES = (  # the identifiers of Hugging Face's page of licences
    "afl-3.0", "agpl-3.0", "apache-2.0", "apple-amlr", "apple-ascl", "artistic-2.0", "bigcode-openrail-m",
    "bigscience-bloom-rail-1.0", "bigscience-openrail-m", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear",
    "bsl-1.0", "c-uda", "cc", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0",
    "cc-by-nc-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
    "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0",
    "cdla-sharing-1.0", "creativeml-openrail-m", "deepfloyd-if-license", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0",
    "eupl-1.1", "eupl-1.2", "fair-noncommercial-research-license", "gemma", "gfdl", "gpl", "gpl-2.0", "gpl-3.0",
    "grok2-community", "h-research", "intel-research", "isc", "lgpl", "lgpl-2.1", "lgpl-3.0", "lgpl-lr", "llama2", "llama3",
    "llama3.1", "llama3.2", "llama3.3", "llama4", "lppl-1.3c", "mit", "mpl-2.0", "ms-pl", "ncsa", "odbl", "odc-by", "ofl-1.1",
    "openmdw-1.0", "openrail", "openrail++", "osl-3.0", "other", "pddl", "postgresql", "unknown", "unlicense", "wtfpl", "zlib",
)  # fmt: skip
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


def unknown_licence(licence: str) -> str | None:
    """A note about an identifier that Hugging Face's pages do not show as a licence."""
    if licence in LICENCES:
        return None
    close = difflib.get_close_matches(licence, LICENCES, n=1)
    hint = f"did you mean '{close[0]}'?" if close else "'other' is for licences that it does not list"
    return f"license: '{licence}' is not one of the identifiers that Hugging Face knows; {hint}"


def check_licence(licence: str) -> None:
    """An identifier such as Hugging Face's."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence):
        raise UserError(f"license: '{licence}' is not an identifier in lower case, such as apache-2.0, cc-by-4.0, mit or other")
