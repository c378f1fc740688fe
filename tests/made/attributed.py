"""A source for shards.build: images in folders. The folder is the class; bit i of the number in the file name is attribute i."""

from __future__ import annotations

from pathlib import Path

from shards.items import Item, Listing
from sr_dist.core.config import Settings

ATTRIBUTES = ["Eyeglasses", "Male", "Smiling", "Wearing_Hat", "No_Beard"]


class Config(Settings):
    pass


def listing(root: str, config: Config) -> Listing:
    files = sorted(Path(root).glob("*/*.png"))
    classes = sorted({path.parent.name for path in files})
    items = [
        Item(
            f"{path.parent.name}/{path.stem}", str(path), classes.index(path.parent.name),
            tuple(bool(int(path.stem) >> bit & 1) for bit in range(len(ATTRIBUTES))),
        )
        for path in files
    ]  # fmt: skip
    return Listing(items, classes, ATTRIBUTES)
