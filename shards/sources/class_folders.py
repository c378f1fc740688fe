"""INPUT has one folder per class, as ImageNet does. Classes are numbered in the order of their sorted names."""

from __future__ import annotations

import numpy as np

from shards.items import Files, Listing, image_names
from sr_dist.core.config import Settings
from sr_dist.core.errors import UserError

PARTS = {"train", "training", "val", "valid", "validation", "test", "testing"}


class Config(Settings):
    pass


def listing(root: str, config: Config) -> Listing:
    names = [name for name in image_names(root) if "/" in name]
    classes = sorted({name.split("/", 1)[0] for name in names})
    if not classes:
        raise UserError(f"INPUT: '{root}' has no folders with images in them; the source 'folder' takes images without classes")
    if set(map(str.lower, classes)) <= PARTS:
        print(
            f"note: the classes of '{root}' are {', '.join(classes)}, which are parts of a data set; "
            f"INPUT='{root}/{classes[0]}' has the classes below it",
            flush=True,
        )
    number = {name: i for i, name in enumerate(classes)}
    labels = np.fromiter((number[name.split("/", 1)[0]] for name in names), np.int32, len(names))
    return Listing(Files(root, names, labels), classes)
