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
from sr_dist.core.printable import plural, printable
from sr_dist.core.progress import Progress, print_line
from sr_dist.data.format import MODES, Index, ShardError, Shards, content_hash, open_shards, read_manifest

MOST_LINES = 20  # per shard


class Verify(Settings):
    """Checks shards: the sizes and checksums of tars and indexes, the manifest, and with --deep every image.

    Prints a line per problem, which names the sample if only some samples of a shard are bad. The exit code is then 1.
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
    whole, passed, bad = [], 0, 0
    with Progress(shards.manifest.samples, "sample") as progress:
        for number, entry in enumerate(entries):
            problems, bad_samples = print_problems(shards, number, options.deep, progress)
            bad += bad_samples
            if not problems:
                whole.append(number)
            passed += entry.samples
            progress.reach(passed)  # a shard that cannot be read has been passed too
    of_manifest = list(manifest_problems(shards, whole))
    for problem in of_manifest:
        print(printable(f"BAD manifest.json: {problem}"))
    samples = sum(entries[number].samples for number in whole)
    of_others = "" if len(whole) == len(entries) else f"; the others have {plural(bad, 'bad sample')}"
    print(f"{len(whole)} of {len(entries)} shards are whole, with {samples} of {shards.manifest.samples} samples{of_others}")
    return int(bool(of_manifest) or len(whole) < len(entries))


def manifest_problems(shards: Shards, whole: list[int]) -> Iterator[str]:
    """Where the manifest contradicts the indexes of the whole shards."""
    manifest = read_manifest(shards.folder)
    sides, scales, highest = [], set(), -1
    for index in (shards.index(number, agreeing=False) for number in whole):
        sides += [int(index[side].min()) for side in ("width", "height") if len(index)]
        scales |= set((index["width"] // np.maximum(index["lr_width"], 1) * (index["lr_width"] > 0)).tolist())
        highest = max(highest, int(index["class"].max(initial=-1)))
    smallest, complete = min(sides, default=manifest.min_side), len(whole) == len(manifest.shards)
    if smallest < manifest.min_side or (complete and smallest > manifest.min_side):
        yield f"min_side is {manifest.min_side}, but the smallest side in the indexes is {smallest}"
    if not scales <= {manifest.scale or 0}:
        yield f"scale is {manifest.scale or 0}, but LR images in the indexes are of {sorted(scales)} (0 is none)"
    if highest >= len(manifest.classes):
        yield f"it names {len(manifest.classes)} classes, but the indexes have the class {highest}"


def print_problems(shards: Shards, number: int, deep: bool, progress: Progress) -> tuple[int, int]:
    """Prints the problems of one shard, up to MOST_LINES of them: -> their number, and that of the samples that have some."""
    count, rows = 0, set[int | None]()
    for count, (row, problem) in enumerate(shard_problems(shards, number, deep, progress), 1):
        rows.add(row)
        if count <= MOST_LINES:
            print_line(printable(f"BAD {shards.path(number).name}: {problem}"))
    if count > MOST_LINES:
        print_line(f"BAD {shards.path(number).name}: and {count - MOST_LINES} more")
    return count, len(rows - {None})


def shard_problems(shards: Shards, number: int, deep: bool, progress: Progress) -> Iterator[tuple[int | None, str]]:
    """The problems of one shard, the cheapest checks first, with the row of the sample that they are about, if it is one."""
    path, entry = shards.path(number), shards.manifest.shards[number]
    try:
        if path.stat().st_size != entry.bytes:
            yield None, f"{path.stat().st_size} bytes where the manifest says {entry.bytes}"
        elif sha256(path) != entry.sha256:
            yield None, "its sha256 is not the manifest's"
        index = shards.index(number, agreeing=False)
    except OSError as problem:
        yield None, f"it cannot be read: {problem.strerror}"
        return
    except ShardError as problem:
        yield None, str(problem)
        return
    if not path.is_file():  # such as a folder, whose size was wrong
        return
    with open(path, "rb") as tar:
        for row in range(len(index)):
            for member in ("hr", "lr"):
                yield from ((row, problem) for problem in _member_problems(tar, index, row, member, deep))
            progress.advance()


def _member_problems(tar: IO[bytes], index: Index, row: int, member: str, deep: bool) -> Iterator[str]:
    size = int(index[f"{member}_bytes"][row])
    if not size:
        return
    tar.seek(int(index[f"{member}_offset"][row]))
    data, key = tar.read(size), index["key"][row].decode()
    if len(data) != size or zlib.crc32(data) != int(index[f"{member}_crc32"][row]):
        yield f"the {member} image of '{key}' does not match its checksum"
    elif deep:
        from sr_dist.core.pixels import open_image  # spares Pillow's import without --deep

        try:
            with open_image(io.BytesIO(data)) as image:
                image.load()
        except Exception as problem:
            yield f"the {member} image of '{key}' cannot be decoded: {problem}"
            return
        prefix = "lr_" if member == "lr" else ""
        stated = int(index[f"{prefix}width"][row]), int(index[f"{prefix}height"][row])
        if image.size != stated:
            yield f"the {member} image of '{key}' is {image.width} x {image.height}, but the index says {stated[0]} x {stated[1]}"
        if member == "hr" and image.mode != MODES[index["mode"][row]]:
            yield f"the hr image of '{key}' is {image.mode}, but the index says {MODES[index['mode'][row]]}"
        if member == "hr" and content_hash(data) != index["hash"][row].tobytes():
            yield f"the hr image of '{key}' does not have the hash in the index"


if __name__ == "__main__":
    sys.exit(main())
