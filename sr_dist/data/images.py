"""Images to score: every one exactly once over all ranks, whole, LR beside HR; from shards, or from files in folders.

Batches are formed from the sorted list before ranks take whole batches, so that what a network sees at one time, and
with it every bit of the result, does not depend on the number of ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sr_dist.core import ranks
from sr_dist.core.errors import UserError
from sr_dist.data.folder_images import GREY, FolderImages, LRFolder
from sr_dist.data.format import MODES, Shards, attribute_values
from sr_dist.data.order import split_range
from sr_dist.data.reader import ShardReader
from sr_dist.data.remote.cache import Cache
from sr_dist.data.remote.sources import is_remote, open_shards
from sr_dist.data.select import Portion, portion_rows

Degrade = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Scored:
    """Some images of one size. `grey`: stored as grey, so that they are their own luma."""

    lr: Tensor  # (B, 3, h, w) float
    hr: Tensor  # (B, 3, H, W) float
    names: tuple[str, ...]
    label: Tensor  # (B,); -1 where there is no class
    grey: bool
    attributes: Mapping[str, Tensor] = field(default_factory=dict)  # by name: (B,) of 0 and 1


class Images(Protocol):
    """A sorted list of images, whose names and sizes are known without decoding."""

    names: list[str]

    def shape(self, i: int) -> tuple[int, int, bool]:
        """Height, width, and whether it is stored as grey."""

    def mode(self, i: int) -> str:
        """Pillow's word for how it is stored: RGB, L, RGBA, ..."""

    def load(self, i: int) -> tuple[Tensor, Tensor | None, int]:
        """HR (3, H, W) uint8, LR where one is stored, class number."""

    def digest(self, i: int) -> str:
        """Names the content of HR and LR, and what is said to be true of them."""

    def attributes(self, i: int) -> dict[str, int]:
        """0 or 1 by name."""


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
        open_shards(source, key)  # says what is missing, and the nearest name
    if portion:
        raise UserError(f"{key}: '{source}' is a folder of images; only shards have parts")
    return FolderImages(folder, limit, key, lr)


class ShardImages:
    """The samples of shards by their keys. What the indexes say of them is read once, shard by shard: the sorted list goes
    through all shards at random, and so many indexes cannot stay open."""

    FACTS = ("key", "height", "width", "mode", "class", "hash", "lr_crc32", "attributes")

    def __init__(self, shards: Shards, limit: int | None, portion: Portion | None = None) -> None:
        shards.check_sizes()
        self.reader = ShardReader(shards)
        selected = portion_rows(shards, portion or Portion())
        indexes = ((shards.index(shard), rows) for shard, rows in enumerate(selected))
        columns = zip(*([index[name][rows] for name in self.FACTS] for index, rows in indexes), strict=True)
        facts = dict(zip(self.FACTS, map(np.concatenate, columns), strict=True))
        order = np.argsort(facts["key"], kind="stable")[:limit]
        self.facts = {name: column[order] for name, column in facts.items()}
        self.names = [key.decode() for key in self.facts["key"]]
        self.shard = np.repeat(np.arange(len(selected)), [len(rows) for rows in selected])[order]
        self.row = np.concatenate(selected)[order]

    def shape(self, i: int) -> tuple[int, int, bool]:
        return int(self.facts["height"][i]), int(self.facts["width"][i]), self.mode(i) in GREY

    def mode(self, i: int) -> str:
        return MODES[int(self.facts["mode"][i])]

    def digest(self, i: int) -> str:
        labels = f"{self.label(i)} {bytes(self.facts['attributes'][i]).hex()}"
        return f"{bytes(self.facts['hash'][i]).hex()} {int(self.facts['lr_crc32'][i])} {labels}"

    def label(self, i: int) -> int:
        return int(self.facts["class"][i])

    def load(self, i: int) -> tuple[Tensor, Tensor | None, int]:
        shard, row = int(self.shard[i]), int(self.row[i])
        hr, lr = (self.reader.image(shard, row, member, 3) for member in ("hr", "lr"))
        assert hr is not None
        return hr, lr, self.label(i)

    def attributes(self, i: int) -> dict[str, int]:
        names = self.reader.shards.manifest.attributes
        values = attribute_values(self.facts["attributes"][i : i + 1], len(names))[0]
        return dict(zip(names, values.tolist(), strict=True))


@dataclass
class Batches(Dataset):
    """The images in batches of one size: neighbours in the sorted list that are alike, at most `size` together."""

    images: Images
    scale: int
    degrade: Degrade
    size: int

    @cached_property
    def groups(self) -> list[range]:
        shapes = [self.images.shape(i) for i in range(len(self.images.names))]
        cuts = [i for i in range(len(shapes)) if i == 0 or shapes[i] != shapes[i - 1]] + [len(shapes)]
        return [
            range(low, min(low + self.size, end))
            for start, end in zip(cuts, cuts[1:], strict=False)
            for low in range(start, end, self.size)
        ]

    def __len__(self) -> int:
        return len(self.groups)

    def notes(self) -> list[str]:
        """What is done to some of the images before they are scored."""
        indices = range(len(self.images.names))
        shapes, modes = [self.images.shape(i) for i in indices], [self.images.mode(i) for i in indices]
        counts = {
            f"cropped at the right and below to a multiple of {self.scale}": sum(
                bool(height % self.scale or width % self.scale) for height, width, _ in shapes
            ),
            "stored grey, so their own Y": sum(grey for _, _, grey in shapes),
            "without their transparency": sum(mode.split(";")[0] in ("RGBA", "LA", "PA") for mode in modes),
            "of 16 bits, read as 8": sum(mode.startswith("I") or ";16" in mode for mode in modes),
        }
        return [f"{count} of {len(modes)} images {meaning}" for meaning, count in counts.items() if count]

    def __getitem__(self, number: int) -> Scored | UserError:
        try:
            pairs = [self._pair(i) for i in self.groups[number]]
        except UserError as mistake:  # handed over, for a raise in a worker arrives as a page of traceback
            return mistake
        lr, hr, label = zip(*pairs, strict=True)
        grey = self.images.shape(self.groups[number][0])[2]
        names = tuple(self.images.names[i] for i in self.groups[number])
        facts = [self.images.attributes(i) for i in self.groups[number]]
        attributes = {name: torch.tensor([fact[name] for fact in facts]) for name in facts[0]}
        return Scored(torch.stack(lr), torch.stack(hr), names, torch.tensor(label), grey, attributes)

    def _pair(self, i: int) -> tuple[Tensor, Tensor, int]:
        hr8, lr8, label = self.images.load(i)
        hr, scale = hr8.to(torch.float64) / 255, self.scale
        if lr8 is None:
            height, width = (side // scale * scale for side in hr.shape[-2:])
            if not height or not width:
                raise UserError(f"'{self.images.names[i]}' ({hr.shape[-1]} x {hr.shape[-2]}) is smaller than the scale {scale}")
            hr = hr[:, :height, :width]
            lr = self.degrade(hr[None], torch.tensor([i]))[0]
        else:
            lr = lr8.to(torch.float64) / 255
            height, width = lr.shape[-2] * scale, lr.shape[-1] * scale
            if not (0 <= hr.shape[-2] - height < scale and 0 <= hr.shape[-1] - width < scale):
                raise UserError(
                    f"'{self.images.names[i]}': LR {lr.shape[-1]} x {lr.shape[-2]} and HR {hr.shape[-1]} x {hr.shape[-2]} "
                    f"are not {scale} times apart"
                )
            hr = hr[:, :height, :width]
        return lr.float(), hr.float(), label


def content(images: Images) -> str:
    """Names, content and labels of all images in one digest. All ranks must call: each reads some of them."""
    mine = split_range(len(images.names), ranks.size(), ranks.rank())
    digests = [digest for part in ranks.all_gather([images.digest(i) for i in mine]) for digest in part]
    return hashlib.sha256("\n".join([*images.names, *digests]).encode()).hexdigest()


def numbers_of_this_rank(batches: Batches) -> range:
    """Consecutive whole batches, disjoint over ranks; a rank may get none."""
    return split_range(len(batches), ranks.size(), ranks.rank())


def load(batches: Batches, numbers: Sequence[int], workers: int = 0) -> Iterator[Scored]:
    for batch in DataLoader(batches, sampler=numbers, batch_size=None, num_workers=workers if len(numbers) > 1 else 0):
        if isinstance(batch, UserError):
            raise batch
        yield batch
