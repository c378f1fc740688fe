"""The images of a validation set, whole and sorted by name: from shards, or from files in folders."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from sr_dist.core import ranks
from sr_dist.core.errors import UserError
from sr_dist.data.folder_images import GREY, FolderImages, LRFolder
from sr_dist.data.format import MODES, Shards, attribute_values
from sr_dist.data.order import split_range
from sr_dist.data.reader import ShardReader
from sr_dist.data.remote.cache import Cache
from sr_dist.data.remote.sources import is_remote, open_shards
from sr_dist.data.select import Portion, portion_rows

FEW_IMAGES = 10  # fewer say little about others


class Images(Protocol):
    """A sorted list of images. Names and sizes are known without decoding."""

    names: list[str]

    def shape(self, i: int) -> tuple[int, int, bool]:
        """(height, width, True if the image is stored as grey)"""

    def mode(self, i: int) -> str:
        """Pillow's name of the storage mode: RGB, L, RGBA, ..."""

    def load(self, i: int) -> tuple[Tensor, Tensor | None, int]:
        """HR (3, H, W) uint8, LR or None if it is not stored, and the class number."""

    def digest(self, i: int) -> str:
        """Identifies the content of HR and LR, and the labels."""

    def attributes(self, i: int) -> dict[str, int]:
        """0 or 1 by name."""


def changed_when_read(modes: Sequence[str]) -> dict[str, int]:
    """How many images of these modes lose something when they are read as 8-bit RGB, by what is done."""
    return {
        "without their transparency": sum(mode.split(";")[0] in ("RGBA", "LA", "PA") for mode in modes),
        "of 16 bits, read as 8": sum(mode.startswith("I") or ";16" in mode for mode in modes),
    }


def open_images(
    source: str, limit: int | None = None, key: str = "data.validation", *,
    lr: LRFolder | None = None, cache: Cache | None = None, portion: Portion | None = None,
) -> Images:  # fmt: skip
    """Shards (a folder with a manifest, a brace pattern, a URL), or a portion of them, or a folder of image files."""
    folder = Path(source)
    if is_remote(source) or "{" in source or source.endswith(".tar") or (folder / "manifest.json").is_file():
        if lr and lr.folder:
            raise UserError(f"lr: '{source}' is shards, which hold their own LR; a folder of LR goes with a folder of images")
        return ShardImages(open_shards(source, key, cache), limit, portion)
    if not folder.is_dir():
        open_shards(source, key)  # raises an error that names the nearest folder
    if portion:
        raise UserError(f"{key}: '{source}' is a folder of images; only shards have parts")
    return FolderImages(folder, limit, key, lr)


class ShardImages:
    """The samples of shards, sorted by key.

    The indexes are read once, shard by shard. The sorted list visits the shards at random, and not all indexes can stay open.
    """

    COLUMNS = ("key", "height", "width", "mode", "class", "hash", "lr_crc32", "attributes")

    def __init__(self, shards: Shards, limit: int | None, portion: Portion | None = None) -> None:
        shards.check_sizes()
        self.reader = ShardReader(shards)
        selected = portion_rows(shards, portion or Portion())
        indexes = ((shards.index(shard), rows) for shard, rows in enumerate(selected))
        columns = zip(*([index[name][rows] for name in self.COLUMNS] for index, rows in indexes), strict=True)
        by_name = dict(zip(self.COLUMNS, map(np.concatenate, columns), strict=True))
        order = np.argsort(by_name["key"], kind="stable")[:limit]
        self.columns = {name: column[order] for name, column in by_name.items()}
        self.names = [key.decode() for key in self.columns["key"]]
        self.shard = np.repeat(np.arange(len(selected)), [len(rows) for rows in selected])[order]
        self.row = np.concatenate(selected)[order]

    def shape(self, i: int) -> tuple[int, int, bool]:
        return int(self.columns["height"][i]), int(self.columns["width"][i]), self.mode(i) in GREY

    def mode(self, i: int) -> str:
        return MODES[int(self.columns["mode"][i])]

    def digest(self, i: int) -> str:
        labels = f"{self.label(i)} {bytes(self.columns['attributes'][i]).hex()}"
        return f"{bytes(self.columns['hash'][i]).hex()} {int(self.columns['lr_crc32'][i])} {labels}"

    def label(self, i: int) -> int:
        return int(self.columns["class"][i])

    def load(self, i: int) -> tuple[Tensor, Tensor | None, int]:
        shard, row = int(self.shard[i]), int(self.row[i])
        hr, lr = (self.reader.image(shard, row, member, 3) for member in ("hr", "lr"))
        assert hr is not None
        return hr, lr, self.label(i)

    def attributes(self, i: int) -> dict[str, int]:
        names = self.reader.shards.manifest.attributes
        values = attribute_values(self.columns["attributes"][i : i + 1], len(names))[0]
        return dict(zip(names, values.tolist(), strict=True))


@dataclass(frozen=True)
class Contents:
    """The names of images, and a digest of each that covers its content and labels."""

    names: list[str]
    digests: list[str]

    def digest(self, first: int | None = None) -> str:
        """Of all images, or of the first ones, as with --limit."""
        text = "\n".join([*self.names[:first], *self.digests[:first]])
        return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()  # names of files may be no text


def contents_of(images: Images) -> Contents:
    """Each rank reads some of the images. All ranks must call."""
    digests: list[str] = []
    with ranks.failing_together():
        digests = [images.digest(i) for i in split_range(len(images.names), ranks.size(), ranks.rank())]
    return Contents(images.names, [digest for part in ranks.all_gather(digests) for digest in part])
