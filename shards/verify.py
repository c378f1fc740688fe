"""The command `python -m shards.verify`."""

from __future__ import annotations

import io
import sys
import zlib
from collections.abc import Iterator, Sequence
from typing import IO, Annotated

import numpy as np

from sr_dist.core import cli
from sr_dist.core.cli import Word
from sr_dist.core.config import Settings
from sr_dist.core.files import sha256
from sr_dist.data.format import Index, ShardError, Shards, open_shards, read_manifest

MOST_LINES = 20  # of one shard


class Verify(Settings):
    """Checks shards: sizes and checksums of tars and indexes, what the manifest says of them, and with --deep every image.

    Prints for every bad shard what is wrong, sample by sample where only some are; the exit code is then 1.
    """

    folder: Annotated[str, Word("OUT")]
    """A folder of shards."""
    deep: bool = False
    """Decode every image."""


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(Verify, verify, argv)


def verify(options: Verify) -> int:
    shards = open_shards(options.folder, "OUT")
    entries = shards.manifest.shards
    whole = [number for number in range(len(entries)) if not said(shards, number, options.deep)]
    wrong = list(manifest_problems(shards, whole))
    for problem in wrong:
        print(f"BAD manifest.json: {problem}")
    samples = sum(entries[number].samples for number in whole)
    print(f"{len(whole)} of {len(entries)} shards are whole, with {samples} of {shards.manifest.samples} samples")
    return int(bool(wrong) or len(whole) < len(entries))


def manifest_problems(shards: Shards, whole: list[int]) -> Iterator[str]:
    """Where the indexes of the whole shards belie what the manifest says of all images."""
    stated = read_manifest(shards.folder)
    sides, scales, highest = [], set(), -1
    for index in map(shards.index, whole):
        sides += [int(index[side].min()) for side in ("width", "height") if len(index)]
        scales |= set((index["width"] // np.maximum(index["lr_width"], 1) * (index["lr_width"] > 0)).tolist())
        highest = max(highest, int(index["class"].max(initial=-1)))
    smallest, complete = min(sides, default=stated.min_side), len(whole) == len(stated.shards)
    if smallest < stated.min_side or (complete and smallest > stated.min_side):
        yield f"min_side is {stated.min_side}, but the smallest side in the indexes is {smallest}"
    if not scales <= {stated.scale or 0}:
        yield f"scale is {stated.scale or 0}, but LR images in the indexes are of {sorted(scales)} (0 is none)"
    if highest >= len(stated.classes):
        yield f"it names {len(stated.classes)} classes, but the indexes have the class {highest}"


def said(shards: Shards, number: int, deep: bool) -> int:
    """Prints what is wrong with one shard, and of how many things."""
    found = 0
    for found, problem in enumerate(problems(shards, number, deep), 1):
        if found <= MOST_LINES:
            print(f"BAD {shards.path(number).name}: {problem}")
    if found > MOST_LINES:
        print(f"BAD {shards.path(number).name}: and {found - MOST_LINES} more")
    return found


def problems(shards: Shards, number: int, deep: bool) -> Iterator[str]:
    """What is wrong with one shard, the cheapest checks first."""
    path, entry = shards.path(number), shards.manifest.shards[number]
    try:
        if path.stat().st_size != entry.bytes:
            yield f"{path.stat().st_size} bytes where the manifest says {entry.bytes}"
        elif sha256(path) != entry.sha256:
            yield "its sha256 is not the manifest's"
        index = shards.index(number)
        index.check()
    except (OSError, ShardError) as problem:
        yield str(problem)
        return
    if not path.is_file():  # a folder, say: its size was wrong
        return
    with open(path, "rb") as tar:
        for row in range(len(index)):
            for member in ("hr", "lr"):
                yield from _member_problems(tar, index, row, member, deep)


def _member_problems(tar: IO[bytes], index: Index, row: int, member: str, deep: bool) -> Iterator[str]:
    size = int(index[f"{member}_bytes"][row])
    if not size:
        return
    tar.seek(int(index[f"{member}_offset"][row]))
    data, key = tar.read(size), index["key"][row].decode()
    if len(data) != size or zlib.crc32(data) != int(index[f"{member}_crc32"][row]):
        yield f"the {member} image of '{key}' does not match its checksum"
    elif deep:
        from PIL import Image

        try:
            with Image.open(io.BytesIO(data)) as image:
                image.load()
        except Exception as problem:
            yield f"the {member} image of '{key}' cannot be decoded: {problem}"


if __name__ == "__main__":
    sys.exit(main())
