"""Images to score: every one exactly once over all ranks, whole, LR beside HR; from shards or from a folder.

Batches are formed from the sorted list before ranks take whole batches, so that what a network sees at one time, and
with it every bit of the result, does not depend on the number of ranks.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sr_dist import ranks
from sr_dist.data.cache import Cache
from sr_dist.data.format import MODES, Shards
from sr_dist.data.order import share
from sr_dist.data.reader import ShardReader, decode, to_tensor
from sr_dist.data.remote import is_remote, open_shards
from sr_dist.data.select import Portion, portion_rows
from sr_dist.errors import UserError, first_line, nearest
from sr_dist.files import sha256

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
GREY = ("1", "L", "LA", "I;16", "I;16B", "I")
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
    lr: str | None = None, scale: int | None = None, cache: Cache | None = None, portion: Portion | None = None,
) -> Images:  # fmt: skip
    """Shards (a folder with a manifest, a brace pattern, a URL), or a portion of them, or a folder of image files, whose LR may
    be in a folder `lr`."""
    folder = Path(source)
    if is_remote(source) or "{" in source or source.endswith(".tar") or (folder / "manifest.json").is_file():
        if lr:
            raise UserError(f"lr: '{source}' is shards, which hold their own LR; a folder of LR goes with a folder of images")
        return ShardImages(open_shards(source, key, cache), limit, portion)
    if not folder.is_dir():
        open_shards(source, key)  # says what is missing, and the nearest name
    if portion:
        raise UserError(f"{key}: '{source}' is a folder of images; only shards have parts")
    return FolderImages(folder, limit, key, lr, scale)


class ShardImages:
    def __init__(self, shards: Shards, limit: int | None, portion: Portion | None = None) -> None:
        shards.check_sizes()
        self.reader = ShardReader(shards)
        rows = [(shard, int(row)) for shard, some in enumerate(portion_rows(shards, portion or Portion())) for row in some]
        rows.sort(key=lambda place: self.reader.key(*place))
        self.places = rows[:limit]
        self.names = [self.reader.key(*place) for place in self.places]

    def shape(self, i: int) -> tuple[int, int, bool]:
        shard, row = self.places[i]
        index = self.reader.index(shard)
        return int(index["height"][row]), int(index["width"][row]), self.mode(i) in GREY

    def mode(self, i: int) -> str:
        shard, row = self.places[i]
        return MODES[int(self.reader.index(shard)["mode"][row])]

    def digest(self, i: int) -> str:
        shard, row = self.places[i]
        index = self.reader.index(shard)
        labels = f"{int(index['class'][row])} {bytes(index['attributes'][row]).hex()}"
        return f"{bytes(index['hash'][row]).hex()} {int(index['lr_crc32'][row])} {labels}"

    def load(self, i: int) -> tuple[Tensor, Tensor | None, int]:
        shard, row = self.places[i]
        hr, lr = (self.reader.image(shard, row, member, 3) for member in ("hr", "lr"))
        assert hr is not None
        return hr, lr, int(self.reader.index(shard)["class"][row])

    def attributes(self, i: int) -> dict[str, int]:
        values = self.reader.attributes(*self.places[i]).tolist()
        return dict(zip(self.reader.shards.manifest.attributes, values, strict=True))


class FolderImages:
    """Image files below a folder, and their LR where there is one: in a folder that is named, in a folder LR beside a
    folder HR, or under names in _HR and _LR (Set5 as it is shared)."""

    def __init__(self, folder: Path, limit: int | None, key: str, lr: str | None = None, scale: int | None = None) -> None:
        low = _folder_of_lr(folder, lr, scale)
        high = (_within(folder, "HR") if low and not lr else None) or folder
        files = [p for p in _files(high) if low is None or low == high or low not in p.parents]
        if not files:
            raise UserError(f"{key}: no images in '{high}' (looked for {' '.join(SUFFIXES)}), and no manifest.json of shards")
        named = [p for p in files if p.stem.upper().endswith("_HR")]
        if not named and not lr and all(p.stem.upper().endswith("_LR") for p in files):
            raise UserError(
                f"{key}: the images in '{high}' are called _LR, and none is called _HR; there is nothing to score against"
            )
        files = named or files
        self.lr_files = _partners(files, high, low or high, key, scale) if low or named else []
        self.files = files[:limit]
        self.names = [str(p.relative_to(high).with_suffix("")) for p in self.files]
        if len(set(self.names)) < len(self.names):  # a.png beside a.jpg
            self.names = [str(p.relative_to(high)) for p in self.files]
        self._headers: dict[int, tuple[int, int, str]] = {}

    def shape(self, i: int) -> tuple[int, int, bool]:
        height, width, mode = self._header(i)
        return height, width, mode.split(";")[0] in GREY

    def mode(self, i: int) -> str:
        return self._header(i)[2]

    def _header(self, i: int) -> tuple[int, int, str]:
        from PIL import Image

        if i not in self._headers:
            try:
                with Image.open(self.files[i]) as image:
                    self._headers[i] = (image.height, image.width, _mode(image))
            except OSError:
                raise UserError(f"'{self.files[i]}' is not an image that can be read") from None
        if self._headers[i][2] == "F":
            raise UserError(f"'{self.files[i]}' is stored as floats; which of them is white is not known")
        return self._headers[i]

    def load(self, i: int) -> tuple[Tensor, Tensor | None, int]:
        partner = self.lr_files[i] if self.lr_files else None
        return _read_image(self.files[i]), None if partner is None else _read_image(partner), -1

    def digest(self, i: int) -> str:
        return " ".join(map(sha256, [self.files[i], *self.lr_files[i : i + 1]]))

    def attributes(self, i: int) -> dict[str, int]:
        return {}


def _mode(image: Any) -> str:
    """Pillow's word, with what it leaves out: transparent colours of a palette, and 16 bits of colour."""
    if image.mode == "P" and "transparency" in image.info:
        return "PA"
    deep = image.mode.startswith(("RGB", "L")) and any(";16" in str(tile[3]) for tile in image.tile)
    return f"{image.mode};16" if deep else image.mode


def _files(folder: Path) -> list[Path]:
    """Hidden ones, such as macOS' `._a.png`, are no images."""
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    return [p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts)]


def _within(folder: Path, *names: str) -> Path | None:
    """A folder inside folders, whose names may be in small letters."""
    for name in names:
        inside = {p.name.upper(): p for p in sorted(folder.iterdir(), reverse=True) if p.is_dir()}
        if name.upper() not in inside:
            return None
        folder = inside[name.upper()]
    return folder


def _folder_of_lr(folder: Path, lr: str | None, scale: int | None) -> Path | None:
    """The folder that is named, or one that lies beside a folder HR, as in DIV2K."""
    if lr:
        if not Path(lr).is_dir():
            near = [str(p) for p in Path(lr).parent.glob("*")] if Path(lr).parent.is_dir() else []
            raise UserError(f"lr: no folder '{lr}'{nearest(lr, near)}")
        return Path(lr)
    places = [_within(folder, *names) for names in (("LR_bicubic", f"X{scale}"), ("LR", f"X{scale}"), ("LR",))]
    return next((place for place in places if place), None) if _within(folder, "HR") else None


def _partners(files: list[Path], high: Path, low: Path, key: str, scale: int | None) -> list[Path]:
    """The LR of every HR: of the same name, or one that says the scale (0801x4) or the kind (_LR)."""
    there = {p.relative_to(low).with_suffix(""): p for p in _files(low)}
    found: list[Path] = []
    lonely: list[str] = []
    for path in files:
        place = path.relative_to(high).with_suffix("")
        plain = re.sub("_HR$", "", place.name, flags=re.IGNORECASE)
        beside = [f"{plain}_LR", f"{plain}_lr"]
        names = beside if low == high else [place.name, f"{place.name}x{scale}", plain, *beside]
        partner = next((there[place.with_name(name)] for name in names if place.with_name(name) in there), None)
        if partner is None:
            lonely.append(str(path.relative_to(high)))
        else:
            found.append(partner)
    if lonely:
        kind = "_LR partner" if low == high else "LR"
        more = f" ... ({len(lonely)} of {len(files)})" if len(lonely) > 5 else ""
        raise UserError(f"{key}: no {kind} for {', '.join(lonely[:5])}{more} in '{low}'")
    return found


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
        return [f"{count} of {len(modes)} images {what}" for what, count in counts.items() if count]

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
    mine = share(len(images.names), ranks.size(), ranks.rank())
    digests = [digest for part in ranks.gather([images.digest(i) for i in mine]) for digest in part]
    return hashlib.sha256("\n".join([*images.names, *digests]).encode()).hexdigest()


def numbers_of_this_rank(batches: Batches) -> range:
    """Consecutive whole batches, disjoint over ranks; a rank may get none."""
    return share(len(batches), ranks.size(), ranks.rank())


def load(batches: Batches, numbers: Sequence[int], workers: int = 0) -> Iterator[Scored]:
    for batch in DataLoader(batches, sampler=numbers, batch_size=None, num_workers=workers if len(numbers) > 1 else 0):
        if isinstance(batch, UserError):
            raise batch
        yield batch
