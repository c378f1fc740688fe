"""Weights by their names: a run folder, a file, or a file of the weights folders (`SR_DIST_WEIGHTS`, the torch hub cache).
Does not import torch."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from sr_dist.core import catalogue
from sr_dist.core.errors import LONGEST_NAME, UserError, nearest_path
from sr_dist.models import pretrained
from sr_dist.models.weights_formats import READ

VERY_NEAR = 0.9  # of 1: a slip of the keyboard
LONGEST_SUFFIX = 5  # with its dot: .pht, not .5_of_mine


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
                return _verified(folder / name, key)
    if published:
        raise pretrained.MissingWeights(f"{key}: the weights '{source}' are missing; {catalogue.advice(source)} fetches them")
    folders = pretrained.folders()
    files = [file for folder in folders if folder.is_dir() for file in folder.iterdir() if file.suffix in READ]
    near = _nearest(source, [*others, *(file.stem for file in files)])
    raise UserError(f"{key}: no run folder or weights file '{source}', nor is it in {' or '.join(map(str, folders))}{near}")


def _verified(path: Path, key: str) -> Path:
    """A published name means the published file. Another one, such as the same weights saved again, is used by its path."""
    try:
        return pretrained.verified(path, key)
    except UserError as problem:
        raise UserError(f"{problem}; {shlex.quote(str(path))} in place of the name uses it as it is") from None


def _nearest(source: str, names: Sequence[str]) -> str:
    """The end of the message: the closest of the files in this folder, of the other names, and of what can be fetched."""
    entries = [entry for entry in catalogue.read(catalogue.TABLE).values() if entry.kind == "weights"]
    table = [Path(file.name).stem for entry in entries for file in entry.files]
    stem = source.removesuffix(Path(source).suffix) if len(Path(source).suffix) <= LONGEST_SUFFIX else source
    offered = [*names, *table]
    for word in dict.fromkeys((source, stem)):
        close = difflib.get_close_matches(word[:LONGEST_NAME], offered, n=1, cutoff=VERY_NEAR)
        if close:
            more = f" ({catalogue.advice(close[0])} fetches it)" if close[0] in table and close[0] not in names else ""
            return f"; did you mean '{close[0]}'?{more}"
    return nearest_path(source, names)
