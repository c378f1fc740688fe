"""What a source says of a data set: a sequence of items, light enough for millions, and the names of classes and attributes."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from sr_dist.core.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
LONGEST_KEY = 78  # bytes; with the place of a tile and a member's suffix it fits the 100 of a tar header


class Item(NamedTuple):
    """One input before it is read."""

    key: str
    path: str  # where the source's `read` finds it
    label: int = -1
    attributes: tuple[bool, ...] = ()
    box: tuple[int, int, int, int] | None = None  # left, top, right, bottom: a tile of the image
    lr: str | None = None  # the file of its LR image


@dataclass
class Listing:
    items: Sequence[Item]
    classes: list[str] = field(default_factory=list)
    attributes: list[str] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)  # goes into the manifest
    scale: int | None = None  # of the LR images
    rejects: list[dict[str, str]] = field(default_factory=list)  # what cannot even be an item: key, path, reason


class Files(Sequence[Item]):
    """Items of the files below a folder, made when they are asked for: a million of them are some 40 MB."""

    def __init__(self, root: str | Path, names: Sequence[str], labels: Sequence[int] | np.ndarray | None = None) -> None:
        self.root, self.names, self.labels = str(root), Texts(names), labels
        self._keys = other_keys(self.names)

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, i: int) -> Item: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Item]: ...
    def __getitem__(self, i: int | slice) -> Item | Sequence[Item]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        name, label = self.names[i], -1 if self.labels is None else int(self.labels[i])
        return Item(self._keys.get(i) or natural_key(name), f"{self.root}/{name}", label)


class Texts(Sequence[str]):
    """Many short texts in one buffer."""

    def __init__(self, texts: Iterable[str]) -> None:
        raw = [text.encode("utf-8", "surrogateescape") for text in texts]
        self._ends = np.fromiter(accumulate(map(len, raw), initial=0), np.int64, len(raw) + 1)
        self._all = b"".join(raw)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[str]: ...
    def __getitem__(self, i: int | slice) -> str | Sequence[str]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        if i >= len(self):
            raise IndexError(i)
        return self._all[self._ends[i] : self._ends[i + 1]].decode("utf-8", "surrogateescape")


def image_names(root: str | Path) -> list[str]:
    """Every image file below a folder, as paths from it, sorted; hidden files and folders are left out."""
    if not os.path.isdir(root):
        raise UserError(f"INPUT: no folder '{root}'")
    try:
        return sorted(_walk(str(root), "", ()))
    except OSError as problem:
        raise UserError(f"INPUT: '{problem.filename}' cannot be listed: {problem.strerror}") from None


def _walk(folder: str, below: str, inside: tuple[str, ...]) -> Iterator[str]:
    """Linked folders are followed, but not back into a folder that they lie in."""
    if (place := os.path.realpath(folder)) in inside:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(entry.path, f"{below}{entry.name}/", (*inside, place))
            elif entry.name.lower().endswith(SUFFIXES) and not stat.S_ISFIFO(entry.stat(follow_symlinks=False).st_mode):
                yield below + entry.name  # reading from a pipe might never end


def natural_key(name: str) -> str:
    """The path of a file without its suffix, made fit for tars."""
    return fit(name[: name.rindex(".")])


def other_keys(names: Sequence[str]) -> dict[int, str]:
    """Keys of those files whose natural key an earlier one has: by suffix where that is enough, else by a hash of the name."""
    hashes = np.fromiter((hash(natural_key(name)) for name in names), np.int64, len(names))
    order = np.argsort(hashes, kind="stable")
    repeats = np.flatnonzero(hashes[order][1:] == hashes[order][:-1]) + 1
    ordered = hashes[order]
    taken: set[str] = set()
    found = {}
    for i in sorted(order[repeats].tolist()):
        name = names[i]
        key = fit(f"{name[: name.rindex('.')]}-{name[name.rindex('.') + 1 :].lower()}")
        place = np.searchsorted(ordered, hash(key))
        if key in taken or (place < len(ordered) and ordered[place] == hash(key)):
            key = fit(f"{key}-{blake2b(name.encode('utf-8', 'surrogateescape'), digest_size=8).hexdigest()}")
        taken.add(key)
        found[i] = key
    return found


def fit(key: str) -> str:
    """WebDataset cuts a member's name at its first dot, so keys have none; long ones end in a hash of the whole."""
    if key.isascii() and key.isprintable() and len(key) <= LONGEST_KEY and not _UNFIT & set(key):
        return key
    key = "".join("_" if c in _UNFIT or not c.isprintable() else c for c in key)
    raw = key.encode("utf-8", "replace")
    if len(raw) <= LONGEST_KEY:
        return raw.decode()
    return raw[: LONGEST_KEY - 17].decode("utf-8", "ignore") + "-" + blake2b(raw, digest_size=8).hexdigest()


_UNFIT = {".", "\\", " "}
