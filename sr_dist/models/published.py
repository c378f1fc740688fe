"""Weights by their names: a run folder, a file, or a file of the weights folders (`SR_DIST_WEIGHTS`, the torch hub cache).
Does not import torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sr_dist.core import catalogue
from sr_dist.core.errors import UserError, nearest_path
from sr_dist.models import pretrained
from sr_dist.models.weights_formats import READ


def place(source: str, key: str, others: Iterable[str] = ()) -> Path:
    """The path of weights. A name that is no path is looked for in the weights folders, with or without its suffix, or as
    sr_dist.fetch has it. `others`: words that are allowed too, for the error."""
    path = Path(source)
    if path.exists():
        return path
    if path.name != source:
        raise UserError(f"{key}: no run folder or weights file '{source}'{nearest_path(source, others)}")
    published = catalogue.weights_of(source)
    for folder in pretrained.folders():
        for name in (source, *(source + suffix for suffix in READ), *published):
            if (folder / name).is_file():
                return pretrained.verified(folder / name, key)
    if published:
        raise pretrained.MissingWeights(f"{key}: the weights '{source}' are missing; {catalogue.advice(source)} fetches them")
    folders = pretrained.folders()
    files = [file for folder in folders if folder.is_dir() for file in folder.iterdir() if file.suffix in READ]
    near = nearest_path(source, [*others, *(file.stem for file in files)])
    raise UserError(f"{key}: no run folder or weights file '{source}', nor is it in {' or '.join(map(str, folders))}{near}")
