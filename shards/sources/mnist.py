"""MNIST and data sets of its form: INPUT is a folder of idx files, plain or gzipped, or the folder that torchvision made (with
MNIST/raw inside). The class is the digit.
"""

from __future__ import annotations

import gzip
import io
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from shards.items import Item, Listing
from sr_dist.core.config import Settings
from sr_dist.core.errors import UserError

FILES = {"train": "train", "test": "t10k"}
FOLDERS = (".", "MNIST/raw", "raw")


class Config(Settings):
    part: Literal["train", "test"] = "train"
    """The part; test reads the files called t10k-...."""


def listing(root: str, config: Config) -> Listing:
    if not Path(root).is_dir():
        raise UserError(f"INPUT: no folder '{root}'")
    images, labels = (_idx_file(Path(root), config.part, kind) for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    digits = read_idx(str(labels))
    if digits.shape != read_idx(str(images)).shape[:1]:
        raise UserError(f"INPUT: '{labels}' has {len(digits)} labels, '{images}' {len(read_idx(str(images)))} images")
    items = [Item(f"{config.part}-{i:05d}", f"{images}:{i}", int(digit)) for i, digit in enumerate(digits)]
    return Listing(items, [str(digit) for digit in range(max(10, int(digits.max(initial=0)) + 1))])


def read(item: Item) -> bytes:
    path, _, number = item.path.rpartition(":")
    file = io.BytesIO()
    Image.fromarray(read_idx(path)[int(number)]).save(file, "PNG")
    return file.getvalue()


def _idx_file(root: Path, part: str, kind: str) -> Path:
    for folder in FOLDERS:
        for name in (f"{FILES[part]}-{kind}", f"{FILES[part]}-{kind.replace('-idx', '.idx')}"):
            for path in (root / folder / name, root / folder / f"{name}.gz"):
                if path.is_file():
                    return path
    other = "test" if part == "train" else "train"
    hint = f"; --part={other} would find files" if any((root / f).glob(f"{FILES[other]}-*") for f in FOLDERS) else ""
    raise UserError(f"INPUT: '{root}' has no {FILES[part]}-{kind} or {FILES[part]}-{kind}.gz{hint}")


@lru_cache(maxsize=4)
def read_idx(path: str) -> np.ndarray:
    """The bytes of an idx file: images (N, height, width) or labels (N,)."""
    try:
        data = Path(path).read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError, zlib.error) as problem:
        raise UserError(f"INPUT: '{path}' cannot be read: {problem}") from None
    axes = data[3] if data[:3] == b"\0\0\x08" else 0
    shape = np.frombuffer(data, ">u4", min(axes, (len(data) - 4) // 4), 4).tolist() if axes else []
    if axes not in (1, 3) or len(data) != 4 + 4 * axes + int(np.prod(shape, dtype=object)):
        raise UserError(f"INPUT: '{path}' is not an idx file of bytes, or is cut short")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)
