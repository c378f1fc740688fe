"""The words of an evaluation's command line: METHODs and sets of images. Does not import torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from sr_dist.core.errors import UserError
from sr_dist.core.run_layout import is_run
from sr_dist.evaluation.presets import BASELINES

NAME = r"[\w.@+-]+"  # of a method or a set: it becomes the name of a folder


class MethodWord(NamedTuple):
    """A METHOD: a run folder, a weights file, a baseline, a folder of pictures, or NAME=PATH."""

    text: str
    path: str
    name: str | None = None

    @property
    def is_baseline(self) -> bool:
        return self.name is None and self.path in BASELINES

    @property
    def is_pictures(self) -> bool:
        """A folder that is no run: pictures that were made elsewhere."""
        return not self.is_baseline and Path(self.path).is_dir() and not is_run(Path(self.path))


def method_word(text: str) -> MethodWord:
    """A path that exists may have a `=` in it, such as runs/lr=1e-4."""
    name, equals, path = text.partition("=")
    if not equals or Path(text).exists() or "/" in name:
        return MethodWord(text, text)
    if not re.fullmatch(NAME, name) or name.startswith(".") or name in (*BASELINES, "HR", "LR"):
        raise UserError(f"METHOD: '{name}' cannot be the name of a method; in NAME=FOLDER the name has letters, digits, _ . - +")
    return MethodWord(text, path, name)


def named_sets(text: str, key: str = "data") -> dict[str, str]:
    """`set5=A,set14=B` -> {"set5": A, "set14": B}; one source without a name -> {"": source}."""
    if not re.match(f"{NAME}=", text) or Path(text).exists():
        return {"": text}
    sets: dict[str, str] = {}
    for part in re.split(f",(?={NAME}=)", text):
        name, _, source = part.partition("=")
        if name in sets or name.startswith(".") or not source:
            raise UserError(f"{key}: '{part}' {'repeats a name' if name in sets else 'is no NAME=SOURCE'}")
        sets[name] = source
    return sets
