"""Images to score: every one exactly once over all ranks, whole, LR beside HR; from shards or from a folder.

Batches are formed from the sorted list before ranks take whole batches, so that what a network sees at one time, and
with it every bit of the result, does not depend on the number of ranks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sr_dist import ranks
from sr_dist.data.format import MODES, open_shards
from sr_dist.data.order import share
from sr_dist.data.select import Portion, portion_rows
from sr_dist.data.stream import ShardReader, decode, to_tensor
from sr_dist.errors import UserError, first_line

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
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

    def load(self, i: int) -> tuple[Tensor, Tensor | None, int]:
        """HR (3, H, W) uint8, LR where one is stored, class number."""

    def attributes(self, i: int) -> dict[str, int]:
        """0 or 1 by name."""


def open_images(source: str, limit: int | None = None, key: str = "data.validation", portion: Portion | None = None) -> Images:
    """Shards (a folder with a manifest, a brace pattern), or a portion of them, or a folder of image files."""
    folder = Path(source)
    if "{" in source or source.endswith(".tar") or (folder / "manifest.json").is_file():
        return ShardImages(source, limit, key, portion)
    if not folder.is_dir():
        open_shards(source, key)  # says what is missing, and the nearest name
    if portion:
        raise UserError(f"{key}: '{source}' is a folder of images; only shards have parts")
    return FolderImages(folder, limit, key)


class ShardImages:
    def __init__(self, source: str, limit: int | None, key: str, portion: Portion | None = None) -> None:
        shards = open_shards(source, key)
        shards.check_sizes()
        self.reader = ShardReader(shards)
        rows = [(shard, int(row)) for shard, some in enumerate(portion_rows(shards, portion or Portion())) for row in some]
        rows.sort(key=lambda place: self.reader.key(*place))
        self.places = rows[:limit]
        self.names = [self.reader.key(*place) for place in self.places]

    def shape(self, i: int) -> tuple[int, int, bool]:
        shard, row = self.places[i]
        index = self.reader.index(shard)
        return int(index["height"][row]), int(index["width"][row]), MODES[int(index["mode"][row])] in ("L", "LA", "I;16")

    def load(self, i: int) -> tuple[Tensor, Tensor | None, int]:
        shard, row = self.places[i]
        hr, lr = (self.reader.image(shard, row, member, 3) for member in ("hr", "lr"))
        assert hr is not None
        return hr, lr, int(self.reader.index(shard)["class"][row])

    def attributes(self, i: int) -> dict[str, int]:
        values = self.reader.attributes(*self.places[i]).tolist()
        return dict(zip(self.reader.shards.manifest.attributes, values, strict=True))


class FolderImages:
    """Image files below a folder. Names that end in _HR and _LR (Set5 as it is shared) are pairs."""

    def __init__(self, folder: Path, limit: int | None, key: str) -> None:
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not files:
            raise UserError(f"{key}: no images in '{folder}' (looked for {' '.join(SUFFIXES)}), and no manifest.json of shards")
        high = [p for p in files if re.search(r"_HR$", p.stem)]
        self.lr_files: list[Path | None] = []
        if high:
            by_name = {p.relative_to(folder).with_suffix(""): p for p in files}
            partners = {p: by_name.get(p.relative_to(folder).with_suffix("").with_name(p.stem[:-3] + "_LR")) for p in high}
            lonely = [str(p.relative_to(folder)) for p, partner in partners.items() if partner is None]
            if lonely:
                raise UserError(
                    f"{key}: no _LR partner for {', '.join(lonely[:5])}{' ...' if len(lonely) > 5 else ''} in '{folder}'"
                )
            files, self.lr_files = high, [partners[p] for p in high]
        self.files = files[:limit]
        self.names = [str(p.relative_to(folder).with_suffix("")) for p in self.files]
        if len(set(self.names)) < len(self.names):  # a.png beside a.jpg
            self.names = [str(p.relative_to(folder)) for p in self.files]
        self._shapes: dict[int, tuple[int, int, bool]] = {}

    def shape(self, i: int) -> tuple[int, int, bool]:
        from PIL import Image

        if i not in self._shapes:
            try:
                with Image.open(self.files[i]) as image:
                    self._shapes[i] = (image.height, image.width, image.mode in ("1", "L", "LA", "I;16", "I"))
            except OSError:
                raise UserError(f"'{self.files[i]}' is not an image that can be read") from None
        return self._shapes[i]

    def load(self, i: int) -> tuple[Tensor, Tensor | None, int]:
        partner = self.lr_files[i] if self.lr_files else None
        return _read_image(self.files[i]), None if partner is None else _read_image(partner), -1

    def attributes(self, i: int) -> dict[str, int]:
        return {}


def _read_image(path: Path) -> Tensor:
    from PIL import Image

    try:
        if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"):
            return decode(path.read_bytes(), 3)
        with Image.open(path) as image:
            return to_tensor(image, 3)
    except (OSError, RuntimeError) as problem:
        raise UserError(f"'{path}' cannot be decoded: {first_line(problem)}") from None


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


def batches_of_this_rank(batches: Batches, workers: int) -> Iterator[Scored]:
    """Consecutive whole batches, disjoint over ranks; a rank may get none."""
    mine = list(share(len(batches), ranks.size(), ranks.rank()))
    for batch in DataLoader(batches, sampler=mine, batch_size=None, num_workers=workers if len(mine) > 1 else 0):
        if isinstance(batch, UserError):
            raise batch
        yield batch
