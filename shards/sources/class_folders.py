"""One folder per class, as ImageNet comes; classes are numbered in the order of their sorted names."""

from __future__ import annotations

from pathlib import Path

from shards.items import Item, Listing, image_files, keyed
from sr_dist.config import Settings
from sr_dist.errors import UserError


class Config(Settings):
    pass


def listing(root: str, config: Config) -> Listing:
    files = [path for path in image_files(Path(root)) if len(path.relative_to(root).parts) > 1]
    classes = sorted({path.relative_to(root).parts[0] for path in files})
    if not classes:
        raise UserError(f"INPUT: '{root}' has no folders with images in them; the source 'folder' takes images without classes")
    number = {name: i for i, name in enumerate(classes)}
    items = [Item(key, str(path), number[path.relative_to(root).parts[0]]) for key, path in keyed(files, Path(root))]
    return Listing(items, classes)
