"""BasicSR's lists of images. A line is `0001_s001.png (480,480,3)`, a name alone, or the names of a pair: `gt.png, lq.png`."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from shards.items import clean_key
from sr_dist.core.errors import UserError, first_line

SIZE = re.compile(
    r"\s*\(\s*\d+\s*,\s*\d+\s*(?:,\s*\d+\s*)?\)(?:\s+\d+)?$"
)  # height, width, channels; in LMDB also the compression


class Entry(NamedTuple):
    """A line of a list."""

    hr: str
    lr: str | None = None


def read_entries(path: Path, option: str) -> list[Entry]:
    """Sorted, each once. `option` is the one that names the list or its folder, for messages."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"{option}: '{path}' cannot be read: {first_line(problem)}") from None
    entries = {_entry(line.strip(), f"{option}: '{path}', line {number}") for number, line in enumerate(lines, 1) if line.strip()}
    if not entries:
        raise UserError(f"{option}: '{path}' names no image")
    if len({entry.lr is None for entry in entries}) > 1:
        raise UserError(f"{option}: '{path}' has lines with one name and lines with two")
    return sorted(entries)


def read_names(path: Path, option: str) -> list[str]:
    """The names of a list without pairs."""
    entries = read_entries(path, option)
    if entries[0].lr is not None:
        raise UserError(f"{option}: '{path}' has two names on a line; the source 'pairs' reads lists of pairs")
    return [entry.hr for entry in entries]


def without_suffix(name: str) -> str:
    return name.rpartition(".")[0] or name


def reject(name: str, path: str, reason: str = "no image has this name") -> dict[str, str]:
    """The row of rejects.jsonl for a listed image."""
    return {"key": clean_key(without_suffix(name)), "path": path, "reason": reason}


def _entry(line: str, place: str) -> Entry:
    names = [name.strip() for name in SIZE.sub("", line).split(", ")]
    if len(names) > 2 or not all(names):
        raise UserError(f"{place}: '{line[:100]}' is neither `name (height,width,channels)`, a name, nor `HR name, LR name`")
    for name in names:
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise UserError(f"{place}: '{name[:100]}' must be relative to the folder of images, without ..")
    return Entry(*(str(PurePosixPath(name)) for name in names))
