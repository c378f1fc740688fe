"""Writes one shard: a tar and its index. Each appears under its name whole or not at all. Equal items give equal bytes."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from shards.image_header import Rejected, pillow_settings
from shards.items import Item
from shards.pixels import EncodedImage, Preparation, PreparedSample, prepare, rejection_of_lr
from shards.source import read_lr_file
from sr_dist.core.errors import UserError
from sr_dist.core.files import write_whole
from sr_dist.data.format import MODES, ShardEntry, attribute_bits, content_hash, index_bytes, index_name


@dataclass(frozen=True)
class WriteOptions:
    """What all shards of a build have in common. Worker processes receive it."""

    folder: Path
    read: Callable[[Item], bytes]
    preparation: Preparation
    attributes: Sequence[str] = ()
    scale: int | None = None  # of stored LR
    fail_on_reject: bool = False
    read_lr: Callable[[Item], bytes] = read_lr_file


@dataclass
class WrittenShard:
    """What the merge needs to know of a shard."""

    entry: ShardEntry
    rejects: list[dict[str, Any]] = field(default_factory=list)  # key, path, reason
    min_side: int = 0  # of its images; 0 if it has none
    converted: dict[str, int] = field(default_factory=dict)  # number of images that could not be stored unchanged, by reason
    restarts: dict[str, int] = field(default_factory=dict)  # number of JPEGs that got restart markers, or not, by reason


class TarWriter:
    """Writes members one after another and computes the digest of all bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest, self.size = file, hashlib.sha256(), 0

    def add(self, name: str, data: bytes) -> int:
        """Appends a member. Returns the offset of its data."""
        offset = self.size + 512
        self._write(member_header(name, len(data)) + data + bytes(-len(data) % 512))
        return offset

    def end(self) -> None:
        self._write(bytes(1024))
        self.file.flush()
        os.fsync(self.file.fileno())

    def _write(self, block: bytes) -> None:
        self.file.write(block)
        self.digest.update(block)
        self.size += len(block)


@pillow_settings()
def write_shard(name: str, items: Iterable[Item], options: WriteOptions) -> WrittenShard:
    """Writes the tar `name` and its index into the folder."""
    temporary = options.folder / f".{name}.{os.getpid()}"
    rows: list[dict[str, Any]] = []
    rejects: list[dict[str, Any]] = []
    converted: Counter[str] = Counter()
    restarts: Counter[str] = Counter()
    try:
        with open(temporary, "wb") as file:
            tar = TarWriter(file)
            for item in items:
                result = prepare_item(item, options)
                if isinstance(result, dict):
                    rejects.append(result)
                    continue
                for sample in result:
                    rows.append(write_sample(tar, item, sample, options.attributes))
                    converted.update([sample.conversion] if sample.conversion else [])
                    restarts.update([sample.restarts] if sample.restarts else [])
            tar.end()
        write_whole(options.folder / index_name(name), index_bytes(rows, (len(options.attributes) + 7) // 8))
        os.replace(temporary, options.folder / name)
    finally:
        temporary.unlink(missing_ok=True)
    entry = ShardEntry(name=name, bytes=tar.size, samples=len(rows), sha256=tar.digest.hexdigest())
    min_side = min((min(row["width"], row["height"]) for row in rows), default=0)
    return WrittenShard(entry, rejects, min_side, dict(converted), dict(restarts))


def prepare_item(item: Item, options: WriteOptions) -> list[PreparedSample] | dict[str, str]:
    """The samples of one input, or its row of rejects.jsonl."""
    try:
        lr = _lr_bytes(item, options) if item.lr else None
        return list(prepare(options.read(item), lr, options.preparation, options.scale or 1))
    except (Rejected, OSError) as problem:
        of_lr = problem.of_lr if isinstance(problem, Rejected) else problem.filename == item.lr
        path = item.lr if item.lr and of_lr else item.path
        if options.fail_on_reject:
            raise UserError(f"on_bad: '{path}' ({item.key}): {problem}") from None
        return {"key": item.key, "path": path, "reason": str(problem)}


def _lr_bytes(item: Item, options: WriteOptions) -> bytes:
    with rejection_of_lr():
        return options.read_lr(item)


def write_sample(tar: TarWriter, item: Item, sample: PreparedSample, attributes: Sequence[str]) -> dict[str, Any]:
    """Writes the members of one sample. Returns its row of the index."""
    key = item.key + sample.key_suffix
    row = {
        "key": key.encode(), "class": item.label, "attributes": attribute_bits(item.attributes, (len(attributes) + 7) // 8 or 1),
        "width": sample.hr.width, "height": sample.hr.height, "mode": MODES.index(sample.hr.mode),
        "hash": content_hash(sample.hr.data), **write_image(tar, "hr", f"{key}.{sample.hr.suffix}", sample.hr),
    }  # fmt: skip
    if sample.lr:
        row.update(lr_width=sample.lr.width, lr_height=sample.lr.height, **write_image(tar, "lr", f"{key}.lr.png", sample.lr))
    if item.label >= 0:
        tar.add(f"{key}.cls", str(item.label).encode())
    if attributes:
        values = dict(zip(attributes, map(int, item.attributes), strict=True))
        tar.add(f"{key}.json", json.dumps({"attributes": values}, separators=(",", ":")).encode())
    return row


def write_image(tar: TarWriter, member: str, name: str, image: EncodedImage) -> dict[str, int]:
    """Writes the hr or lr member. Returns its columns of the index."""
    offset = tar.add(name, image.data)
    return {f"{member}_offset": offset, f"{member}_bytes": len(image.data), f"{member}_crc32": zlib.crc32(image.data)}


def member_header(name: str, size: int) -> bytes:
    """A ustar header that depends only on name and size, so equal input gives equal bytes."""
    raw = name.encode()
    if len(raw) > 100 or size >= 8**11:
        return _ustar(name, size)
    # Only name, size and checksum differ. Calling tarfile for every header takes most of the time of a build.
    block = raw.ljust(100, b"\0") + _EMPTY[100:124] + b"%011o" % size + _EMPTY[135:148] + b" " * 8 + _EMPTY[156:]
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _ustar(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime, info.uid, info.gid = size, 0o644, 0, 0, 0
    return info.tobuf(format=tarfile.USTAR_FORMAT, encoding="utf-8")


_EMPTY = _ustar("", 0)
