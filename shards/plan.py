"""What a build will write, decided before the first shard, so that workers, tasks and later runs write the same bytes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import features

from shards.build_files import PLAN_FILE, part_file, read_part_file, read_plan_file, write_plan_file
from shards.items import Item, Listing
from shards.writer import WrittenShard
from sr_dist.core.config import flatten
from sr_dist.core.errors import UserError
from sr_dist.core.formats import UnknownFormat
from sr_dist.core.version import __version__
from sr_dist.data.format import Index, index_name
from sr_dist.data.order import permutation, split_range

LISTS = ("manifest.json", "rejects.jsonl", "duplicates.jsonl")


@dataclass(frozen=True)
class Plan:
    root: str  # of the inputs
    out: Path
    name: str  # the shards are NAME-000000.tar ...
    listing: Listing
    order: np.ndarray  # positions in the listing
    num_shards: int
    fingerprint: dict[str, Any]  # everything that decides the bytes of the shards; goes into the plan file
    source: dict[str, Any] = field(default_factory=dict)  # goes into the manifest

    def shard(self, number: int) -> str:
        return f"{self.name}-{number:06d}.tar"

    def items(self, number: int) -> list[Item]:
        """A fixed slice of the permuted listing, whichever task builds it."""
        part = split_range(len(self.order), self.num_shards, number)
        return [self.listing.items[i] for i in self.order[part.start : part.stop]]

    def begin(self) -> None:
        """Makes the folder and its plan file, or continues an unfinished build of the same plan."""
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise UserError(f"OUT: '{self.out}' cannot be made: {problem.strerror}") from None
        names = map(self.shard, range(self.num_shards))
        foreign = next((name for shard in names for name in (shard, index_name(shard)) if (self.out / name).exists()), None)
        if (self.out / PLAN_FILE).exists():  # checked last, since another task may be beginning
            self.check_continues()
        elif foreign:
            raise UserError(f"OUT: '{self.out}' holds '{foreign}', which no build wrote; choose another folder or --name")
        else:
            write_plan_file(self.out, self.fingerprint)

    def check_continues(self) -> None:
        """Refuses to continue a build that began with another plan."""
        earlier, now = flatten(read_plan_file(self.out)), flatten(json.loads(json.dumps(self.fingerprint)))
        for key in [*now, *earlier]:
            if earlier.get(key) != now.get(key):
                raise UserError(
                    f"OUT: '{self.out}' holds an unfinished build with {key} {earlier.get(key)}, but it is {now.get(key)} now; "
                    "give the same to continue it, or remove the folder"
                )

    def finished(self, number: int, shortened: bool) -> WrittenShard | None:
        """The shard, if it was written to its end. `shortened`: a merge may have removed duplicates from its index already."""
        shard = self.out / self.shard(number)
        try:
            written = read_part_file(shard)
            index = Index(self.out / index_name(shard.name))
            index.check()
            size = shard.stat().st_size
        except UnknownFormat:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # ShardError and UserError are ValueErrors
            return None
        whole = len(index) == written.entry.samples or (shortened and len(index) < written.entry.samples)
        return written if whole and size == written.entry.bytes and written.entry.name == shard.name else None

    def tidy(self) -> None:
        """Removes the files that only an unfinished build needs, and temporary files of killed processes."""
        own = {PLAN_FILE, *LISTS}
        for number in range(self.num_shards):
            shard = self.out / self.shard(number)
            part_file(shard).unlink(missing_ok=True)
            own |= {shard.name, index_name(shard.name), part_file(shard).name}
        for path in list(self.out.iterdir()):
            temporary = re.fullmatch(r"\.(.+)\.\d+", path.name)
            if temporary and temporary[1] in own:
                path.unlink(missing_ok=True)
        (self.out / PLAN_FILE).unlink(missing_ok=True)

    def clear(self) -> None:
        """Removes all shards of a build that has failed."""
        for number in range(self.num_shards):
            for name in (self.shard(number), index_name(self.shard(number))):
                (self.out / name).unlink(missing_ok=True)
        (self.out / "duplicates.jsonl").unlink(missing_ok=True)
        self.tidy()
        with suppress(OSError):  # not empty
            self.out.rmdir()


def item_order(listing: Listing, seed: int, per_class: int | None) -> np.ndarray:
    """The positions of all items in permuted order, or of the first `per_class` of each class in that order."""
    order = permutation(len(listing.items), seed, 0, use=0)
    if per_class is None:
        return order
    if not listing.classes:
        raise UserError("per_class: this source has no classes")
    labels = np.fromiter((item.label for item in listing.items), np.int64, len(order))[order]
    by_class = np.argsort(labels, kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[by_class] = np.arange(len(order)) - np.searchsorted(labels[by_class], labels[by_class])
    return order[rank < per_class]


def items_digest(items: Iterable[Item]) -> str:
    """Digest of the list of inputs. Their contents are not read, so a file that is replaced between two runs is not noticed."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(f"{item.key}\0{item.label}\0{bytes(item.attributes).hex()}\0{item.lr is not None}\n".encode())
    return digest.hexdigest()


def tool_versions() -> dict[str, str]:
    """The versions on which the bytes of encoded images depend."""
    codecs = {name: str(features.version_codec(codec)) for name, codec in (("libjpeg", "jpg"), ("zlib", "zlib"))}
    with suppress(ValueError):
        codecs["webp"] = str(features.version_module("webp"))
    return {"sr_dist": __version__, "pillow": metadata.version("pillow"), **codecs}
