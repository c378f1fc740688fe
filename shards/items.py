"""What a source says of a data set: a list of items, light enough for millions, and the names of classes and attributes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from sr_dist.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
LONGEST_KEY = 90  # bytes; with a member's suffix it fits the 100 of a tar header


class Item(NamedTuple):
    """One sample before it is read."""

    key: str
    path: str  # where the source's `read` finds it
    label: int = -1
    attributes: tuple[bool, ...] = ()
    box: tuple[int, int, int, int] | None = None  # left, top, right, bottom: a tile of the image


@dataclass
class Listing:
    items: list[Item]
    classes: list[str] = field(default_factory=list)
    attributes: list[str] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)  # goes into the manifest


def image_files(root: Path) -> list[Path]:
    """Every image file below a folder, sorted; hidden files and folders are left out."""
    if not root.is_dir():
        raise UserError(f"INPUT: no folder '{root}'")
    return sorted(
        path for path in root.rglob("*")
        if path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )  # fmt: skip


def keyed(paths: Iterable[Path], root: Path) -> list[tuple[str, Path]]:
    """A key for every file: its path below the root without suffix, made fit for tars and unique."""
    taken: set[str] = set()
    found = []
    for path in paths:
        relative = path.relative_to(root)
        key = fit(relative.with_suffix("").as_posix())
        if key in taken:
            key = fit(f"{relative.with_suffix('').as_posix()}-{path.suffix[1:].lower()}")
        if key in taken:
            key = fit(f"{key}-{blake2b(relative.as_posix().encode('utf-8', 'surrogateescape'), digest_size=4).hexdigest()}")
        taken.add(key)
        found.append((key, path))
    return found


def fit(key: str) -> str:
    """WebDataset cuts a member's name at its first dot, so keys have none; long ones end in a hash of the whole."""
    key = "".join("_" if c in ".\\ " or not c.isprintable() else c for c in key)
    raw = key.encode("utf-8", "replace")
    if len(raw) <= LONGEST_KEY:
        return raw.decode()
    return raw[: LONGEST_KEY - 17].decode("utf-8", "ignore") + "-" + blake2b(raw, digest_size=8).hexdigest()
