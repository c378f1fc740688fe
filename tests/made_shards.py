"""What tests of shards do again and again: build, and read back with tarfile."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

from shards import build
from sr_dist.data.format import Shards, open_shards


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
    found = {}
    for path in shards.paths():
        with tarfile.open(path) as tar:
            found.update({member.name: tar.extractfile(member).read() for member in tar})
    return found


def rejects_of(folder: Path) -> dict[str, str]:
    lines = (folder / "rejects.jsonl").read_text().splitlines()
    return {row["key"]: row["reason"] for row in map(json.loads, lines)}
