"""What a build will write, settled before the first shard, so that workers, tasks and later runs make the same bytes.

While a build is unfinished its folder holds `.build.json` (what it began with) and, beside every finished shard, NAME-000000.part
(what the manifest will say of it). The merge takes both away.
"""

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

from shards.items import Item, Listing
from shards.writer import WrittenShard
from sr_dist.core.config import flat
from sr_dist.core.errors import UserError
from sr_dist.core.files import write_whole
from sr_dist.core.version import __version__
from sr_dist.data.format import Index, index_name
from sr_dist.data.order import permutation, share

BEGUN = ".build.json"
LISTS = ("manifest.json", "rejects.jsonl", "duplicates.jsonl")


@dataclass(frozen=True)
class Plan:
    root: str  # where the inputs are
    out: Path
    name: str  # how the names of shards begin
    listing: Listing
    order: np.ndarray  # of the chosen items
    num_shards: int
    facts: dict[str, Any]  # that decide the bytes
    source: dict[str, Any] = field(default_factory=dict)  # for the manifest

    def shard(self, number: int) -> str:
        return f"{self.name}-{number:06d}.tar"

    def items(self, number: int) -> list[Item]:
        """A fixed slice of the permuted list, whoever builds it and when."""
        part = share(len(self.order), self.num_shards, number)
        return [self.listing.items[i] for i in self.order[part.start : part.stop]]

    def begin(self) -> None:
        """Makes the folder and writes down what decides the bytes; or continues a build for which it was the same."""
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise UserError(f"OUT: '{self.out}' cannot be made: {problem.strerror}") from None
        names = map(self.shard, range(self.num_shards))
        there = next((name for shard in names for name in (shard, index_name(shard)) if (self.out / name).exists()), None)
        if (self.out / BEGUN).exists():  # looked for last, as another task may be beginning
            self.continues()
        elif there:
            raise UserError(f"OUT: '{self.out}' holds '{there}', which no build here began; choose another folder or --name")
        else:
            write_whole(self.out / BEGUN, (json.dumps(self.facts, indent=1) + "\n").encode())

    def continues(self) -> None:
        """Refuses to go on with a build that began with something else."""
        try:
            begun = flat(json.loads((self.out / BEGUN).read_text(encoding="utf-8")))
        except (OSError, ValueError) as problem:
            raise UserError(f"OUT: '{self.out / BEGUN}' cannot be read: {problem}; remove the folder '{self.out}'") from None
        now = flat(json.loads(json.dumps(self.facts)))
        for key in [*now, *begun]:
            if begun.get(key) != now.get(key):
                raise UserError(
                    f"OUT: '{self.out}' holds an unfinished build with {key} {begun.get(key)}, where it is {now.get(key)} now; "
                    "give the same to continue it, or remove the folder"
                )

    def finished(self, number: int, shortened: bool) -> WrittenShard | None:
        """What is known of a shard that was written to its end. `shortened`: duplicates may have left its index already."""
        shard = self.out / self.shard(number)
        try:
            written = WrittenShard.read(part_file(shard))
            rows = Index(self.out / index_name(shard.name))
            rows.check()
            size = shard.stat().st_size
        except (OSError, ValueError, KeyError, TypeError):  # ShardError and UserError are ValueErrors
            return None
        whole = len(rows) == written.entry.samples or (shortened and len(rows) < written.entry.samples)
        return written if whole and size == written.entry.bytes and written.entry.name == shard.name else None

    def tidy(self) -> None:
        """Takes away what only an unfinished build needs, and what killed ones left half-written."""
        ours = {BEGUN, *LISTS}
        for number in range(self.num_shards):
            shard = self.out / self.shard(number)
            part_file(shard).unlink(missing_ok=True)
            ours |= {shard.name, index_name(shard.name), part_file(shard).name}
        for path in list(self.out.iterdir()):
            aside = re.fullmatch(r"\.(.+)\.\d+", path.name)
            if aside and aside[1] in ours:
                path.unlink(missing_ok=True)
        (self.out / BEGUN).unlink(missing_ok=True)

    def clear(self) -> None:
        """Takes away all shards of a build that has failed."""
        for number in range(self.num_shards):
            for name in (self.shard(number), index_name(self.shard(number))):
                (self.out / name).unlink(missing_ok=True)
        (self.out / "duplicates.jsonl").unlink(missing_ok=True)
        self.tidy()
        with suppress(OSError):  # where something else lies in it
            self.out.rmdir()


def part_file(shard: Path) -> Path:
    return shard.with_suffix(".part")


def chosen_order(listing: Listing, seed: int, per_class: int | None) -> np.ndarray:
    """All items in permuted order, or the first so many of each class in it."""
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


def facts(source: str, options: dict[str, Any], seed: int, listing: Listing) -> dict[str, Any]:
    inputs = {"count": len(listing.items), "digest": digest(listing.items)}
    return {"source": source, "options": options, "seed": seed, "inputs": inputs, "tool": tools()}


def digest(items: Iterable[Item]) -> str:
    """Of the list of inputs. Their contents are not read, so what is replaced in place between two runs goes unnoticed."""
    whole = hashlib.sha256()
    for item in items:
        whole.update(f"{item.key}\0{item.label}\0{bytes(item.attributes).hex()}\0{item.lr is not None}\n".encode())
    return whole.hexdigest()


def tools() -> dict[str, str]:
    """The versions that decide what re-encoded images are byte by byte."""
    from PIL import features

    codecs = {name: str(features.version_codec(codec)) for name, codec in (("libjpeg", "jpg"), ("zlib", "zlib"))}
    with suppress(ValueError):
        codecs["webp"] = str(features.version_module("webp"))
    return {"sr_dist": __version__, "pillow": metadata.version("pillow"), **codecs}
