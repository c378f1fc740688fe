"""One shard: a tar and its index, each appearing under its name whole or not at all. Equal items give equal bytes."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from shards.items import Item
from shards.pixels import Picture, Preparation, Prepared, Rejected, prepared
from sr_dist.core.config import typed
from sr_dist.core.errors import UserError
from sr_dist.core.files import write_whole
from sr_dist.data.format import MODES, ShardEntry, attribute_bits, content_hash, index_bytes, index_name, member_header


@dataclass(frozen=True)
class Making:
    """What all shards of a build have in common."""

    folder: Path
    read: Callable[[Item], bytes]
    how: Preparation
    attributes: Sequence[str] = ()
    scale: int | None = None
    stop_at_first: bool = False  # rejected input


@dataclass
class WrittenShard:
    entry: ShardEntry
    rejects: list[dict[str, Any]] = field(default_factory=list)
    min_side: int = 0  # of its images; 0 when it has none
    converted: dict[str, int] = field(default_factory=dict)  # how many images could not be kept as they were, by reason

    def write(self, path: Path) -> None:
        write_whole(path, json.dumps({**vars(self), "entry": self.entry.model_dump()}).encode())

    @classmethod
    def read(cls, path: Path) -> WrittenShard:
        tree = json.loads(path.read_bytes())
        return cls(**{**tree, "entry": typed(ShardEntry, tree["entry"])})


class TarFile:
    """Members one after another, with the digest of all bytes so far."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest, self.place = file, hashlib.sha256(), 0

    def add(self, name: str, data: bytes) -> int:
        """Appends one member and returns where its data begins."""
        start = self.place + 512
        self._write(member_header(name, len(data)) + data + bytes(-len(data) % 512))
        return start

    def end(self) -> None:
        self._write(bytes(1024))
        self.file.flush()
        os.fsync(self.file.fileno())

    def _write(self, block: bytes) -> None:
        self.file.write(block)
        self.digest.update(block)
        self.place += len(block)


def write_shard(name: str, items: Iterable[Item], making: Making) -> WrittenShard:
    """Writes `name` and its index into the folder."""
    aside = making.folder / f".{name}.{os.getpid()}"
    rows: list[dict[str, Any]] = []
    rejects: list[dict[str, Any]] = []
    converted: Counter[str] = Counter()
    try:
        with open(aside, "wb") as file:
            tar = TarFile(file)
            for item in items:
                made = samples(item, making)
                if isinstance(made, dict):
                    rejects.append(made)
                    continue
                for sample in made:
                    rows.append(add_sample(tar, item, sample, making.attributes))
                    converted.update([sample.change] if sample.change else [])
            tar.end()
        write_whole(making.folder / index_name(name), index_bytes(rows, (len(making.attributes) + 7) // 8))
        os.replace(aside, making.folder / name)
    finally:
        aside.unlink(missing_ok=True)
    entry = ShardEntry(name=name, bytes=tar.place, samples=len(rows), sha256=tar.digest.hexdigest())
    min_side = min((min(row["width"], row["height"]) for row in rows), default=0)
    return WrittenShard(entry, rejects, min_side, dict(converted))


def samples(item: Item, making: Making) -> list[Prepared] | dict[str, str]:
    """The samples of one input, or which file is the reason that there are none, and why."""
    try:
        lr = Path(item.lr).read_bytes() if item.lr else None
        return list(prepared(making.read(item), lr, making.how, making.scale or 1))
    except (Rejected, OSError) as problem:
        of_lr = problem.of_lr if isinstance(problem, Rejected) else problem.filename == item.lr
        path = item.lr if item.lr and of_lr else item.path
        if making.stop_at_first:
            raise UserError(f"on_bad: '{path}' ({item.key}): {problem}") from None
        return {"key": item.key, "path": path, "reason": str(problem)}


def read_file(item: Item) -> bytes:
    return Path(item.path).read_bytes()


def add_sample(tar: TarFile, item: Item, sample: Prepared, attributes: Sequence[str]) -> dict[str, Any]:
    """Writes the members of one sample and returns its row of the index."""
    key = item.key + sample.place
    row = {
        "key": key.encode(), "class": item.label, "attributes": attribute_bits(item.attributes, (len(attributes) + 7) // 8 or 1),
        "width": sample.hr.width, "height": sample.hr.height, "mode": MODES.index(sample.hr.mode),
        "hash": content_hash(sample.hr.data), **member(tar, "hr", f"{key}.{sample.hr.suffix}", sample.hr),
    }  # fmt: skip
    if sample.lr:
        row.update(lr_width=sample.lr.width, lr_height=sample.lr.height, **member(tar, "lr", f"{key}.lr.png", sample.lr))
    if item.label >= 0:
        tar.add(f"{key}.cls", str(item.label).encode())
    if attributes:
        named = dict(zip(attributes, map(int, item.attributes), strict=True))
        tar.add(f"{key}.json", json.dumps({"attributes": named}, separators=(",", ":")).encode())
    return row


def member(tar: TarFile, kind: str, name: str, picture: Picture) -> dict[str, int]:
    place = tar.add(name, picture.data)
    return {f"{kind}_offset": place, f"{kind}_bytes": len(picture.data), f"{kind}_crc32": zlib.crc32(picture.data)}
