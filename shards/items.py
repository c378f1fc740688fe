"""What a source returns: a listing of items, light enough for millions, with the names of classes and attributes."""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from sr_dist.core.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
LONGEST_KEY = 78  # bytes; with the place of a tile and the suffix of a member it fits the 100 of a tar header
REPLACED = {".", "\\", " "}  # by _ in keys; WebDataset cuts the name of a member at its first dot


class Item(NamedTuple):
    """One input before it is read."""

    key: str  # unique in the listing; `clean_key` makes one from any text
    path: str  # tells the source's `read` which input this is: a file, unless the source has a `read` of its own
    label: int = -1
    attributes: tuple[bool, ...] = ()
    box: tuple[int, int, int, int] | None = None  # left, top, right, bottom: a tile of the image
    lr: str | None = None  # the file of its LR image; the source's `read_lr` may take another text


@dataclass
class Listing:
    items: Sequence[Item]
    classes: list[str] = field(default_factory=list)
    attributes: list[str] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)  # goes into the manifest
    scale: int | None = None  # of the LR images
    rejects: list[dict[str, str]] = field(default_factory=list)  # inputs that are no items: key, path, reason


class MadeItems(Sequence[Item], ABC):
    """Items that are made when they are read, so that a million of them need little memory."""

    @abstractmethod
    def item(self, i: int) -> Item: ...

    @overload
    def __getitem__(self, i: int) -> Item: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Item]: ...
    def __getitem__(self, i: int | slice) -> Item | Sequence[Item]:
        return [self.item(k) for k in range(*i.indices(len(self)))] if isinstance(i, slice) else self.item(i)


class Files(MadeItems):
    """The files below a folder as items: a million need about 40 MB."""

    def __init__(self, root: str | Path, names: Sequence[str], labels: Sequence[int] | np.ndarray | None = None) -> None:
        self.root, self.names, self.labels = str(root), PackedTexts(names), labels
        self._unusual_keys = unusual_keys(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def item(self, i: int) -> Item:
        name, label = self.names[i], -1 if self.labels is None else int(self.labels[i])
        return Item(self._unusual_keys.get(i) or natural_key(name), f"{self.root}/{name}", label)


class PackedTexts(Sequence[str]):
    """Many short texts in one buffer."""

    def __init__(self, texts: Iterable[str]) -> None:
        encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
        self._ends = np.fromiter(accumulate(map(len, encoded), initial=0), np.int64, len(encoded) + 1)
        self._buffer = b"".join(encoded)

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
        return self._buffer[self._ends[i] : self._ends[i + 1]].decode("utf-8", "surrogateescape")


def image_names(root: str | Path) -> list[str]:
    """Every image file below a folder, as sorted relative paths. Hidden files and folders are left out."""
    if not os.path.isdir(root):
        raise UserError(f"INPUT: no folder '{root}'")
    try:
        return sorted(_walk(str(root), "", ()))
    except OSError as problem:
        raise UserError(f"INPUT: '{problem.filename}' cannot be listed: {problem.strerror}") from None


def _walk(folder: str, prefix: str, parents: tuple[str, ...]) -> Iterator[str]:
    """Follows linked folders, but not back into a folder that contains the link."""
    if (real := os.path.realpath(folder)) in parents:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(entry.path, f"{prefix}{entry.name}/", (*parents, real))
            elif entry.name.lower().endswith(SUFFIXES) and not stat.S_ISFIFO(entry.stat(follow_symlinks=False).st_mode):
                yield prefix + entry.name  # a named pipe is left out: reading it might never end


def natural_key(name: str) -> str:
    """The path of a file without its suffix, as a key."""
    return clean_key(name[: name.rindex(".")])


def unusual_keys(names: Sequence[str]) -> dict[int, str]:
    """Keys of files whose natural key an earlier file has: with the suffix if that is unique, else with a hash of the name."""
    hashes = np.fromiter((hash(natural_key(name)) for name in names), np.int64, len(names))
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    repeats = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
    taken: set[str] = set()
    keys = {}
    for i in sorted(order[repeats].tolist()):
        name = names[i]
        key = clean_key(f"{name[: name.rindex('.')]}-{name[name.rindex('.') + 1 :].lower()}")
        place = np.searchsorted(ordered, hash(key))
        if key in taken or (place < len(ordered) and ordered[place] == hash(key)):
            key = clean_key(f"{key}-{blake2b(name.encode('utf-8', 'surrogateescape'), digest_size=8).hexdigest()}")
        taken.add(key)
        keys[i] = key
    return keys


def clean_key(text: str) -> str:
    """A key of printable characters without dots. A long one ends in a hash of the whole."""
    if text.isascii() and text.isprintable() and len(text) <= LONGEST_KEY and not REPLACED & set(text):
        return text
    text = "".join("_" if c in REPLACED or not c.isprintable() else c for c in text)
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= LONGEST_KEY:
        return encoded.decode()
    return encoded[: LONGEST_KEY - 17].decode("utf-8", "ignore") + "-" + blake2b(encoded, digest_size=8).hexdigest()
