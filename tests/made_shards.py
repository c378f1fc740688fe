"""Helpers of the tests of shards: build them, and read them back with tarfile."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zlib
from pathlib import Path

from PIL import Image

from shards import build
from sr_dist.data.format import Manifest, ShardEntry, Shards, content_hash, index_bytes, open_shards, write_manifest


def built(source: str, root: Path | str, out: Path, **options: str) -> Shards:
    build.build(source, str(root), out, options)
    return open_shards(str(out))


def bytes_of(folder: Path) -> dict[str, str]:
    """Name -> sha256 of every file, hidden ones too."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def keys_of(shards: Shards) -> list[str]:
    return [key.decode() for number in range(len(shards.paths())) for key in shards.index(number)["key"]]


def members(path: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(path) as tar:
        return tar.getmembers()


def contents(shards: Shards) -> dict[str, bytes]:
    """Name -> bytes of every member of all shards."""
    by_name = {}
    for path in shards.paths():
        with tarfile.open(path) as tar:
            by_name.update({member.name: tar.extractfile(member).read() for member in tar})
    return by_name


def rejects_of(folder: Path) -> dict[str, str]:
    lines = (folder / "rejects.jsonl").read_text().splitlines()
    return {row["key"]: row["reason"] for row in map(json.loads, lines)}


def handmade(folder: Path, images: list[bytes], lr: list[bytes] | None = None, sizes=None) -> Path:
    """A shard of these images, with stored LR if it is given, written without `shards.writer`."""
    sizes, lr_sizes = sizes or [_size(data) for data in images], [_size(data) for data in lr or ()]
    tar, rows = bytearray(), []
    for number, data in enumerate(images):
        width, height = sizes[number]
        row = {"key": f"sample{number}".encode(), "width": width, "height": height, "class": -1, "attributes": bytes(1)}
        if lr:
            row |= {"lr_width": lr_sizes[number][0], "lr_height": lr_sizes[number][1]}
        for member, content in (("hr", data), ("lr", lr[number] if lr else b"")):
            row |= {f"{member}_offset": len(tar), f"{member}_bytes": len(content), f"{member}_crc32": zlib.crc32(content)}
            tar += content
        rows.append({**row, "hash": content_hash(data)})
    (folder / "t-000000.tar").write_bytes(tar)
    (folder / "t-000000.idx").write_bytes(index_bytes(rows, 0))
    entry = ShardEntry(name="t-000000.tar", bytes=len(tar), samples=len(rows), sha256="")
    fields = {"format": 1, "samples": len(rows), "min_side": min(map(min, sizes)), "order": {"seed": 0}}
    if lr:
        fields["scale"] = sizes[0][0] // lr_sizes[0][0]
    write_manifest(folder, Manifest(**fields, shards=(entry,)))
    return folder


def _size(data: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(data)).size
