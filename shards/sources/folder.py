"""INPUT is a folder of images, with or without folders inside; no classes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from shards.items import Files, Listing, image_names
from shards.meta_info import read_names, reject
from sr_dist.core.config import Absent, Settings
from sr_dist.core.errors import UserError


class Config(Settings):
    list: Annotated[Path | None, Absent] = None
    """Only the images that this text file names, one a line, as BasicSR's meta_info files do."""


def listing(root: str, config: Config) -> Listing:
    names = image_names(root)
    if config.list is None:
        return Listing(Files(root, names))
    listed, exist = read_names(config.list, "list"), set(names)
    if not exist & set(listed):
        raise UserError(f"list: no image of '{config.list}' is in '{root}': '{listed[0]}', ...")
    rejects = [reject(name, f"{root}/{name}") for name in listed if name not in exist]
    return Listing(Files(root, [name for name in listed if name in exist]), rejects=rejects)
