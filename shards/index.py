"""Adopts tars that others made: writes an index for each and one manifest; the tars stay as and where they are.

    python -m shards.index OUT 'TARS/name-{000000..000127}.tar' [--option=value ...]

  OUT              the folder for indexes and manifest.json: that of the tars, or another
  TARS             tars in WebDataset form: KEY.jpg|jpeg|png|webp, perhaps KEY.lr.png, KEY.cls; .json and .txt are passed over
  --classes=FILE   names of the classes, one per line; by default they are called by their numbers
  --tars=PLACE     where training will find the tars, if not where they are now: a folder, or how their URLs begin (https://, s3://)
  --workers=1      processes

Every tar is read once, from its headers; nothing is unpacked. Compressed ones are refused: members of those cannot be read alone.
Images that training could not read are left out of the index and listed with their reason in OUT/rejects.jsonl.
"""

from __future__ import annotations

import inspect
import os
import stat
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any

from pydantic import Field

from shards.merge import duplicates, write_lines
from shards.pixels import Found, Preparation, Rejected, found
from shards.plan import tools
from shards.work import in_processes, with_progress
from sr_dist.core import cli, config
from sr_dist.core.config import Absent, Settings
from sr_dist.core.errors import UserError, first_line
from sr_dist.core.files import sha256, write_whole
from sr_dist.data.format import (
    FORMAT,
    HR_SUFFIXES,
    MAGIC,
    MODES,
    NO_CLASS,
    URLS,
    Manifest,
    ShardEntry,
    ShardError,
    content_hash,
    expanded,
    index_bytes,
    index_name,
    is_url,
    write_manifest,
)

COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}
OTHER_LR = [f"lr.{suffix}" for suffix in HR_SUFFIXES if suffix != "png"]
MOST_CLASSES = 10_000_000  # the manifest has a name for each; numbers beyond it are no classes but identities or hashes


class Adopting(Settings):
    classes: Annotated[Path | None, Absent] = None
    tars: Annotated[str | None, Absent] = None
    workers: Annotated[int, Field(gt=0, le=1024)] = 1


@dataclass(frozen=True)
class Adopted:
    """What the manifest needs to know of one tar."""

    entry: ShardEntry
    rejects: list[dict[str, str]]
    min_side: int
    classes: int  # the highest number of a class, and one
    unlabelled: int  # samples without a class
    scales: set[int]  # of the stored LR images; 0 for those that have none


@dataclass
class Sample:
    """The members of a tar that share a key: (suffix, where the data begin, their bytes)."""

    key: str
    members: list[tuple[str, int, bytes]]


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_words(work, lambda: inspect.cleandoc(__doc__ or ""), argv)


def work(words: cli.Words, options: cli.Options) -> None:
    out, first, *others = words if len(words) > 1 else cli.only(words, "OUT", "TARS")
    try:
        adopt(Path(out), [first, *others], config.typed(Adopting, options))
    except OSError as problem:
        raise UserError(f"OUT: '{problem.filename or out}': {problem.strerror}") from None
    except KeyboardInterrupt:
        sys.exit("interrupted")


def adopt(out: Path, patterns: list[str], chosen: Adopting) -> Manifest:
    paths = tar_paths(patterns)
    tars = place_of(out, paths[0].parent, chosen.tars)
    names = class_names(chosen.classes) if chosen.classes else None
    if out.exists() and not out.is_dir():
        raise UserError(f"OUT: '{out}' is a file; indexes need a folder")
    if (out / "manifest.json").exists():
        raise UserError(f"OUT: '{out}' already holds shards (manifest.json); remove it or choose another folder")
    for path in paths:
        check_tar(path)
        check_index(out / index_name(path.name))
    with aside(out) as folder:
        jobs = ((number, path, folder) for number, path in enumerate(paths))
        found = dict(with_progress(in_processes(adopt_tar, jobs, chosen.workers), len(paths), "tar"))
        adopted = [found[number] for number in range(len(paths))]
        manifest = manifest_of(adopted, names, tars)
        twice = duplicates(folder, list(manifest.shards))
        for shard in manifest.shards:
            os.replace(folder / index_name(shard.name), out / index_name(shard.name))
    rejects = [reject for tar in adopted for reject in tar.rejects]
    write_lines(out / "rejects.jsonl", rejects)
    write_lines(out / "duplicates.jsonl", twice)
    write_manifest(out, manifest)
    say(out, manifest, sum(tar.unlabelled for tar in adopted), len(rejects), len(twice))
    return manifest


@contextmanager
def aside(out: Path) -> Iterator[Path]:
    """A folder within OUT for what is not finished. After a failure it is gone, and so is OUT if it was made for this."""
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".adopting-", dir=out) as unfinished:
            yield Path(unfinished)
    except BaseException:
        with suppress(OSError):
            for folder in made:
                folder.rmdir()
        raise


def say(out: Path, manifest: Manifest, unlabelled: int, rejects: int, twice: int) -> None:
    samples, shards = manifest.samples, len(manifest.shards)
    print(f"{samples} samples in {shards} shards, {len(manifest.classes)} classes, smallest side {manifest.min_side}")
    if 0 < unlabelled < samples:
        print(f"{unlabelled} of the {samples} samples have no class")
    if rejects or twice:
        print(f"{rejects} inputs are left out ({out / 'rejects.jsonl'}), {twice} samples have the bytes of another")


def tar_paths(patterns: list[str]) -> list[Path]:
    for pattern in patterns:
        if is_url(pattern):
            raise UserError(
                f"TARS: '{pattern}' is not on this machine; read the tars where they lie, with --tars={pattern[:8]}..."
            )
    paths = [Path(path) for pattern in patterns for path in expanded(pattern, "TARS")]
    folders = sorted({str(path.parent) for path in paths})
    if len(folders) > 1:
        raise UserError(
            f"TARS: {len(folders)} folders ({folders[0]}, {folders[1]}); one manifest describes the tars of one folder"
        )
    if len({path.name for path in paths}) < len(paths):
        raise UserError("TARS: a tar is named twice")
    return paths


def place_of(out: Path, folder: Path, stated: str | None) -> str | None:
    """What the manifest says of where the tars are; nothing when they are beside it."""
    if stated and is_url(stated):
        if not stated.startswith(URLS):
            raise UserError(f"tars: '{stated}' is neither a folder nor begins with {', '.join(URLS)}")
        return stated
    if stated or folder.resolve() != out.resolve():
        folder = Path(stated or folder)
        return str(folder) if folder.is_absolute() else os.path.relpath(folder, out)
    return None


def class_names(path: Path) -> tuple[str, ...]:
    try:
        return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"classes: '{path}' cannot be read: {problem}") from None


def check_tar(path: Path) -> None:
    """Refuses what cannot be read by offsets."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"TARS: '{path}' is no file with a beginning and an end; members of a stream cannot be read alone")
        with open(path, "rb") as file:
            start = file.read(8)
    except OSError as problem:
        raise UserError(f"TARS: '{path}' cannot be read: {problem.strerror}") from None
    for magic, name in COMPRESSED.items():
        if start.startswith(magic):
            raise UserError(
                f"TARS: '{path}' is compressed ({name}), so its members cannot be read alone; unpack it to a plain tar"
            )
    if not path.name.endswith(".tar"):
        raise UserError(f"TARS: '{path}' is not called .tar")


def check_index(path: Path) -> None:
    """Other programs call their indexes .idx too (DALI); those stay."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        ours = file.read(len(MAGIC)) == MAGIC
    if not ours:
        raise UserError(f"OUT: '{path}' is there and is not an index of sr_dist; choose another folder")


def adopt_tar(number: int, path: Path, out: Path) -> tuple[int, tuple[int, Adopted]]:
    """Writes the index of one tar: (1, (number, what it holds))."""
    rows: list[dict[str, Any]] = []
    rejects: list[dict[str, str]] = []
    seen: set[str] = set()
    with open(path, "rb") as file:
        for sample in samples(file, path):
            try:
                if sample.key in seen:
                    raise Rejected("the key stands twice in this tar; members of a sample lie side by side")
                rows.append(row_of(sample))
                seen.add(sample.key)
            except Rejected as problem:
                rejects.append({"key": sample.key, "path": str(path), "reason": str(problem)})
    write_whole(out / index_name(path.name), index_bytes(rows, 0))
    entry = ShardEntry(name=path.name, bytes=path.stat().st_size, samples=len(rows), sha256=sha256(path))
    sides = [min(row["width"], row["height"]) for row in rows]
    scales = {row["width"] // row["lr_width"] if "lr_width" in row else 0 for row in rows}
    classes = max((row["class"] + 1 for row in rows), default=0)
    unlabelled = sum(row["class"] == NO_CLASS for row in rows)
    return 1, (number, Adopted(entry, rejects, min(sides, default=0), classes, unlabelled, scales))


def samples(file: IO[bytes], path: Path) -> Iterator[Sample]:
    """As WebDataset forms them: neighbours whose names agree up to the first dot."""
    sample = Sample("", [])
    for name, place, data in members(file, path):
        folder, _, last = name.rpartition("/")
        stem, dot, suffix = last.partition(".")
        if not dot or not stem or name.startswith("__"):
            continue
        key = f"{folder}/{stem}" if folder else stem
        if key != sample.key:
            if sample.members:
                yield sample
            sample = Sample(key, [])
        sample.members.append((suffix.lower(), place, data))
    if sample.members:
        yield sample


def members(file: IO[bytes], path: Path) -> Iterator[tuple[str, int, bytes]]:
    """(name, where the data begin, the data) of every file in a tar. tarfile takes damage for the end; this does not."""
    end, last = path.stat().st_size, -1
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                if member.offset_data <= last or member.size < 0 or member.offset_data + member.size > end:
                    raise ShardError(f"'{path}': the header of '{member.name}' is damaged, or the tar is cut short")
                last = member.offset_data
                if member.isreg() and not member.issparse():
                    file.seek(member.offset_data)
                    yield member.name, member.offset_data, file.read(member.size)
            place = tar.offset
    except ShardError:
        raise
    except Exception as problem:  # whatever a mangled header makes tarfile raise
        raise ShardError(f"'{path}' is no tar, or is damaged: {first_line(problem)}") from None
    more = beyond(file, place)
    if more is not None and more < place + 512:
        raise ShardError(f"'{path}': the header at byte {place} is damaged")
    if more is not None:
        raise ShardError(
            f"'{path}' ends at byte {place}, but more follows at byte {more}: a second tar behind the first, as by "
            "`cat a.tar b.tar`, or damage; programs read only the first, so give each its own file"
        )


def beyond(file: IO[bytes], place: int) -> int | None:
    """Where anything but zeros follows."""
    file.seek(place)
    while piece := file.read(1 << 20):
        if rest := piece.lstrip(b"\0"):
            return file.tell() - len(rest)
    return None


def row_of(sample: Sample) -> dict[str, Any]:
    """A sample's row of the index; or why training could not read it."""
    images = [(place, data) for suffix, place, data in sample.members if suffix in HR_SUFFIXES]
    small = [(place, data) for suffix, place, data in sample.members if suffix == "lr.png"]
    labels = [data for suffix, _, data in sample.members if suffix == "cls"]
    for suffix, *_ in sample.members:
        if suffix in OTHER_LR:
            raise Rejected(f"its LR is a .{suffix}; stored LR is PNG")
    if len(images) != 1 or len(small) > 1 or len(labels) > 1:
        raise Rejected(f"{len(images)} images, {len(small)} LR images and {len(labels)} classes where one of each can be")
    hr = readable(images[0][1])
    row = {"key": sample.key.encode("utf-8", "replace"), "class": class_of(labels[0]) if labels else NO_CLASS}
    row |= {"width": hr.width, "height": hr.height, "mode": MODES.index(hr.mode), "hash": content_hash(hr.data)}
    row |= placed("hr", *images[0])
    if small:
        lr = readable(small[0][1])
        if hr.width // lr.width * lr.width != hr.width or hr.width // lr.width * lr.height != hr.height:
            raise Rejected(f"HR {hr.width} x {hr.height} is no multiple of LR {lr.width} x {lr.height}")
        row |= {"lr_width": lr.width, "lr_height": lr.height, **placed("lr", *small[0])}
    return row


def placed(member: str, place: int, data: bytes) -> dict[str, int]:
    return {f"{member}_offset": place, f"{member}_bytes": len(data), f"{member}_crc32": zlib.crc32(data)}


def readable(data: bytes) -> Found:
    image = found(data, Preparation())
    if image.change:
        raise Rejected(f"{image.change}: training cannot read it as it is; shards.build converts it")
    return image


def class_of(data: bytes) -> int:
    text = data.strip()
    if not text.isdigit():
        raise Rejected(f"the class {text[:20]!r} is not a number from 0 up")
    if len(text) > 20 or int(text) >= MOST_CLASSES:
        raise Rejected(f"the class {text[:20].decode()} is beyond {MOST_CLASSES - 1}, the highest number of a class")
    return int(text)


def manifest_of(adopted: list[Adopted], names: tuple[str, ...] | None, tars: str | None) -> Manifest:
    scales = {scale for tar in adopted for scale in tar.scales}
    classes = max(tar.classes for tar in adopted)
    total = sum(tar.entry.samples for tar in adopted)
    if not total:
        first = next((f": '{reject['key']}': {reject['reason']}" for tar in adopted for reject in tar.rejects), "")
        raise UserError(f"TARS: there is no sample that training can read{first}")
    if len(scales) > 1:
        raise UserError(f"TARS: LR images of several scales, or not for all samples: {sorted(scales)} (0 is none)")
    if names is not None and len(names) < classes:
        raise UserError(f"classes: {len(names)} names, but the tars have classes up to number {classes - 1}")
    return Manifest(
        format=FORMAT,
        samples=total,
        min_side=min(tar.min_side for tar in adopted if tar.min_side),
        scale=max(scales) or None,
        classes=names if names is not None else tuple(str(number) for number in range(classes)),
        order={},
        shards=tuple(tar.entry for tar in adopted),
        tars=tars,
        source={"name": "tars of others"},
        tool=tools(),
    )


if __name__ == "__main__":
    sys.exit(main())
