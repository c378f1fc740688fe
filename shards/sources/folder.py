"""A folder of images, with folders inside or not; no classes."""

from __future__ import annotations

from pathlib import Path

from shards.items import Item, Listing, image_files, keyed
from sr_dist.config import Settings


class Config(Settings):
    pass


def listing(root: str, config: Config) -> Listing:
    return Listing([Item(key, str(path)) for key, path in keyed(image_files(Path(root)), Path(root))])
