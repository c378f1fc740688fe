"""Image files in folders as a validation set: which files are HR, the LR of each, and how they are stored."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from PIL import ImageFile, UnidentifiedImageError
from torch import Tensor

from sr_dist.core.errors import UserError, first_line, nearest_path
from sr_dist.core.files import IMAGE_SUFFIXES, images_below, sha256
from sr_dist.core.pixels import open_image, reading_problem
from sr_dist.data.reader import decode, to_tensor

GREY = ("1", "L", "LA", "I;16", "I;16B", "I")


class LRFolder(NamedTuple):
    """The LR of a folder of HR: a named folder, or one beside HR whose name may contain the scale."""

    folder: str | None = None
    scale: int | None = None


class ImageFiles:
    """Image files under their names, each with its LR where there is one."""

    def __init__(self, files: list[Path], names: list[str], lr_files: list[Path]) -> None:
        self.files, self.names, self.lr_files = files, names, lr_files
        self._headers: dict[int, tuple[int, int, str, str]] = {}

    def shape(self, i: int) -> tuple[int, int, bool]:
        height, width, mode, _ = self._header(i)
        return height, width, mode.split(";")[0] in GREY

    def mode(self, i: int) -> str:
        return self._header(i)[2]

    def format(self, i: int) -> str:
        """Pillow's name of the file's format, whatever the file is called: PNG, JPEG, WEBP, ..."""
        return self._header(i)[3]

    def _header(self, i: int) -> tuple[int, int, str, str]:
        """Height, width, mode and format. Each file is opened once."""
        if i not in self._headers:
            with _opened(self.files[i], "is not an image that can be read") as image:
                self._headers[i] = (image.height, image.width, _mode(image), image.format or "")
        if self._headers[i][2] == "F":
            raise UserError(f"'{self.files[i]}' is stored as floats, whose range is not known")
        return self._headers[i]

    def load(self, i: int) -> tuple[Tensor, Tensor | None, int]:
        partner = self.lr_files[i] if self.lr_files else None
        return read_image(self.files[i]), None if partner is None else read_image(partner), -1

    def digest(self, i: int) -> str:
        files = [self.files[i], *self.lr_files[i : i + 1]]
        try:
            return " ".join(map(sha256, files))
        except OSError as error:
            raise UserError(f"'{error.filename or files[0]}' cannot be read: {error.strerror}") from None

    def attributes(self, i: int) -> dict[str, int]:
        return {}


class FolderImages(ImageFiles):
    """The image files below a folder, and their LR where there is one.

    LR is in the named folder, in a folder LR beside a folder HR, or beside HR under names that end in _LR and _HR (as in Set5).
    """

    def __init__(self, folder: Path, limit: int | None, key: str, lr: LRFolder | None = None) -> None:
        lr = lr or LRFolder()
        low = _folder_of_lr(folder, *lr)
        high = (_within(folder, "HR") if low and not lr.folder else None) or folder
        files = [p for p in images_below(high) if low is None or low == high or low not in p.parents]
        if not files:
            raise UserError(
                f"{key}: no images in '{high}' (looked for {' '.join(IMAGE_SUFFIXES)}), and no manifest.json of shards"
            )
        named = [p for p in files if p.stem.upper().endswith("_HR")]
        if not named and not lr.folder and all(p.stem.upper().endswith("_LR") for p in files):
            raise UserError(
                f"{key}: the images in '{high}' are called _LR, and none is called _HR; there is nothing to score against"
            )
        files = named or files
        lr_files = _partners(files, high, low or high, key, lr.scale) if low or named else []
        super().__init__(files[:limit], names_below(high, files[:limit]), lr_files)


def names_below(folder: Path, files: list[Path]) -> list[str]:
    """The names of files below a folder, without their suffixes unless two differ only in them (a.png beside a.jpg)."""
    names = [str(p.relative_to(folder).with_suffix("")) for p in files]
    return names if len(set(names)) == len(names) else [str(p.relative_to(folder)) for p in files]


def _mode(image: ImageFile.ImageFile) -> str:
    """Pillow's mode, with two additions: PA is a palette with transparency, and `;16` means 16 bits per colour."""
    if image.mode == "P" and "transparency" in image.info:
        return "PA"
    deep = image.mode.startswith(("RGB", "L")) and any(";16" in str(tile[3]) for tile in image.tile)
    return f"{image.mode};16" if deep else image.mode


def _within(folder: Path, *names: str) -> Path | None:
    """A folder inside nested folders. Upper and lower case are the same in their names."""
    for name in names:
        inside = {p.name.upper(): p for p in sorted(folder.iterdir(), reverse=True) if p.is_dir()}
        if name.upper() not in inside:
            return None
        folder = inside[name.upper()]
    return folder


def _folder_of_lr(folder: Path, lr: str | None, scale: int | None) -> Path | None:
    """The named folder, or one beside a folder HR, as in DIV2K."""
    if lr:
        if not Path(lr).is_dir():
            raise UserError(f"lr: no folder '{lr}'{nearest_path(lr)}")
        return Path(lr)
    folders = [_within(folder, *names) for names in (("LR_bicubic", f"X{scale}"), ("LR", f"X{scale}"), ("LR",))]
    return next((path for path in folders if path), None) if _within(folder, "HR") else None


def _partners(files: list[Path], high: Path, low: Path, key: str, scale: int | None) -> list[Path]:
    """The LR of every HR: the file with the same name, or with the scale (0801x4) or _LR added."""
    lr_files = {p.relative_to(low).with_suffix(""): p for p in images_below(low)}
    partners: list[Path] = []
    missing: list[str] = []
    for path in files:
        stem = path.relative_to(high).with_suffix("")
        plain = re.sub("_HR$", "", stem.name, flags=re.IGNORECASE)
        beside = [f"{plain}_LR", f"{plain}_lr"]
        names = beside if low == high else [stem.name, f"{stem.name}x{scale}", plain, *beside]
        partner = next((lr_files[stem.with_name(name)] for name in names if stem.with_name(name) in lr_files), None)
        if partner is None:
            missing.append(str(path.relative_to(high)))
        else:
            partners.append(partner)
    if missing:
        kind = "_LR partner" if low == high else "LR"
        more = f" ... ({len(missing)} of {len(files)})" if len(missing) > 5 else ""
        raise UserError(f"{key}: no {kind} for {', '.join(missing[:5])}{more} in '{low}'")
    return partners


def read_image(path: Path) -> Tensor:
    with _opened(path, "cannot be decoded") as image:  # also where another decoder reads it: the header says how large it is
        if image.format in ("JPEG", "MPO") and path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"):
            return decode(_bytes_of(image), 3)
        return to_tensor(image, 3)


def _bytes_of(image: ImageFile.ImageFile) -> bytes:
    """The file of an image, which is open already."""
    assert image.fp
    image.fp.seek(0)
    return image.fp.read()


@contextmanager
def _opened(path: Path, problem: str) -> Iterator[ImageFile.ImageFile]:
    """An image whose header was read. `problem` is the error of whatever goes wrong with it."""
    try:
        with open_image(path) as image:
            yield image
    except Exception as error:  # decoders raise many kinds of errors
        reason = reading_problem(error, path)
        known = not isinstance(error, UnidentifiedImageError) or reason != first_line(error)
        raise UserError(f"'{path}' {problem}{f': {reason}' if known else ''}") from None
