"""INPUT is a folder of images, with or without folders inside; no classes."""

from __future__ import annotations

from shards.items import Files, Listing, image_names
from sr_dist.core.config import Settings


class Config(Settings):
    pass


def listing(root: str, config: Config) -> Listing:
    return Listing(Files(root, image_names(root)))
