"""What a source is: a file in shards/sources, or a module of the user's own, that lists the inputs of one kind of data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, cast

from shards.items import Item, Listing
from sr_dist.core import plugins
from sr_dist.core.config import Settings, SettingsType
from sr_dist.core.errors import UserError

PACKAGE = plugins.PACKAGES["source"]


class Source(Protocol[SettingsType]):
    """A module with `Config` and `listing`, and, if its inputs are not image files, `read` (see `ReadingSource`).

    It does not import torch: shards are built on machines without it, and --help loads every source.
    """

    Config: type[SettingsType]
    """Its options. A name that Build or Preparation has too means the source's option."""

    def listing(self, root: str, config: SettingsType) -> Listing:
        """All inputs of the data set at INPUT.

        Tasks on several machines call it and must get the same items in the same order, whatever order the file system lists
        files in. Keys are unique, labels are positions in `classes` (or -1), and every item has a value for each attribute.
        Paths of files below INPUT begin with `root`, so that rejects.jsonl can name them relative to it. An input that cannot
        be an item goes to `rejects`; a mistake of the user raises UserError that begins with INPUT or the name of the option.
        """


class ReadingSource(Source[SettingsType], Protocol[SettingsType]):
    """A source whose items are not image files. If its LR images are none either, it has `read_lr(item) -> bytes` as well."""

    def read(self, item: Item) -> bytes:
        """An encoded image. Worker processes call it, in any order. OSError and Rejected (of image_header) reject the item."""


def source_names() -> list[str]:
    return plugins.names(PACKAGE)


def load_source(name: str) -> Source[Settings]:
    module_name, path = plugins.locate(PACKAGE, name, "SOURCE")
    module = plugins.import_part(module_name, path, "SOURCE")
    if not hasattr(module, "Config") or not hasattr(module, "listing"):
        raise UserError(f"SOURCE: '{name}' has no Config and listing(root, config), so it is not a source")
    return cast(Source[Settings], module)


def reader(source: Source[Settings]) -> Callable[[Item], bytes]:
    """The source's `read`, or the one that reads files."""
    return getattr(source, "read", read_file)


def read_file(item: Item) -> bytes:
    return Path(item.path).read_bytes()


def lr_reader(source: Source[Settings]) -> Callable[[Item], bytes]:
    """The source's `read_lr`, or the one that reads files."""
    return getattr(source, "read_lr", read_lr_file)


def read_lr_file(item: Item) -> bytes:
    assert item.lr
    return Path(item.lr).read_bytes()
