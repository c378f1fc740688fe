"""Weights by their names: a run folder, a file, or a file of the weights folders (`SR_DIST_WEIGHTS`, the torch hub cache)."""

from __future__ import annotations

from pathlib import Path

from sr_dist.core.errors import UserError, nearest_path
from sr_dist.models import pretrained
from sr_dist.models.weights_files import PICKLES

SUFFIXES = (".safetensors", *PICKLES)


def place(source: str, key: str) -> Path:
    """The path of weights. A name that is no path is looked for in the weights folders, with or without its suffix."""
    path = Path(source)
    if path.exists():
        return path
    if path.name != source:
        raise UserError(f"{key}: no run folder or weights file '{source}'{nearest_path(source)}")
    for folder in pretrained.folders():
        for name in (source, *(source + suffix for suffix in SUFFIXES)):
            if (folder / name).is_file():
                return pretrained.verified(folder / name, key)
    folders = pretrained.folders()
    files = [file for folder in folders if folder.is_dir() for file in folder.iterdir() if file.suffix in SUFFIXES]
    near = nearest_path(source, (file.stem for file in files))
    raise UserError(f"{key}: no run folder or weights file '{source}', nor is it in {' or '.join(map(str, folders))}{near}")
