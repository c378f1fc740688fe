"""ImageNet (ILSVRC 2012) from the files that its site offers, without unpacking them. INPUT is the folder of these files.

    ILSVRC2012_img_train.tar          a tar of a tar per class (--part=train)
    ILSVRC2012_img_val.tar            the validation images (--part=validation), with the classes in
    ILSVRC2012_devkit_t12.tar.gz      the development kit

The shards are those of class_folders and imagenet_val on the unpacked images: the same keys, classes and bytes.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from shards.items import SUFFIXES, Item, Listing, MadeItems, PackedTexts, natural_key
from sr_dist.core.config import Settings
from sr_dist.core.errors import UserError

FILES = {"train": "ILSVRC2012_img_train.tar", "validation": "ILSVRC2012_img_val.tar"}
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
TRUTH, META = "data/ILSVRC2012_validation_ground_truth.txt", "data/meta.mat"  # in the kit
WNID = re.compile(r"n\d{8}")


class Config(Settings):
    part: Literal["train", "validation"] = "train"
    """Which images."""


class Member(NamedTuple):
    """A file inside a tar, which may lie in another tar."""

    name: str
    offset: int
    size: int


def listing(root: str, config: Config) -> Listing:
    path = Path(root) / FILES[config.part]
    if not path.is_file():
        raise UserError(f"INPUT: no {path.name} in '{root}'")
    try:
        return _train(path) if config.part == "train" else _validation(path, Path(root) / DEVKIT)
    except (tarfile.TarError, OSError) as problem:
        raise UserError(f"INPUT: '{path}' cannot be read as a tar: {problem}") from None


def read(item: Item) -> bytes:
    path, offset, size = item.path.rsplit(":", 2)
    with open(path, "rb") as file:
        file.seek(int(offset))
        return file.read(int(size))


def _train(path: Path) -> Listing:
    images: list[tuple[Member, str]] = []
    for inner in _members(path):
        wnid = inner.name.removesuffix(".tar")
        if not WNID.fullmatch(wnid):
            raise UserError(f"INPUT: '{path}' holds '{inner.name}', which is not the tar of a class such as n01440764.tar")
        images += [(member._replace(name=f"{wnid}/{member.name}"), wnid) for member in _members(path, inner.offset)]
    return _listing(path, images)


def _validation(path: Path, devkit: Path) -> Listing:
    images = sorted(_members(path))
    wnids = _classes_of_validation(devkit)
    if len(wnids) != len(images):
        raise UserError(f"INPUT: '{path}' has {len(images)} images, but '{devkit.name}' has the classes of {len(wnids)}")
    return _listing(path, list(zip(images, wnids, strict=True)))


def _listing(path: Path, images: list[tuple[Member, str]]) -> Listing:
    """Images in the order of their names; classes are sorted wnids."""
    images.sort()
    classes = sorted({wnid for _, wnid in images})
    number = {wnid: i for i, wnid in enumerate(classes)}
    return Listing(Members(path, [member for member, _ in images], [number[wnid] for _, wnid in images]), classes)


def _members(path: Path, offset: int = 0) -> Iterator[Member]:
    """The images and tars in a tar that begins at this offset of the file. Only headers are read."""
    with open(path, "rb") as file:
        file.seek(offset)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.isreg() and member.name.lower().endswith((*SUFFIXES, ".tar")):
                    yield Member(member.name.removeprefix("./"), member.offset_data, member.size)


def _classes_of_validation(devkit: Path) -> list[str]:
    """The wnid of every validation image. The kit numbers classes in an order of its own, which is in meta.mat."""
    from scipy.io import loadmat  # takes half a second, and only this part needs it

    if not devkit.is_file():
        raise UserError(f"INPUT: no {devkit.name} in '{devkit.parent}'; it has the classes of the validation images")
    try:
        with tarfile.open(devkit) as tar:
            files: dict[str, Any] = {}
            for member in tar:
                for name in (TRUTH, META):
                    if member.isreg() and member.name.endswith(name):
                        files[name] = tar.extractfile(member)
                        files[name] = loadmat(files[name], squeeze_me=True) if name == META else files[name].read()
        synsets = files[META]["synsets"]
        wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in np.atleast_1d(synsets) if int(row["num_children"]) == 0}
        return [wnids[int(line)] for line in files[TRUTH].split()]
    except (tarfile.TarError, OSError, EOFError, KeyError, ValueError, TypeError, IndexError) as problem:
        raise UserError(f"INPUT: '{devkit}' is not the development kit of ILSVRC 2012: {problem!r}") from None


class Members(MadeItems):
    """Files inside a tar as items: a million need about 60 MB."""

    def __init__(self, path: Path, members: Sequence[Member], labels: Sequence[int]) -> None:
        self.path, self.names = str(path), PackedTexts(member.name for member in members)
        self.places = np.array([(member.offset, member.size) for member in members], np.int64).reshape(-1, 2)
        self.labels = np.array(labels, np.int32)

    def __len__(self) -> int:
        return len(self.names)

    def item(self, i: int) -> Item:
        offset, size = self.places[i].tolist()
        return Item(natural_key(self.names[i]), f"{self.path}:{offset}:{size}", int(self.labels[i]))
