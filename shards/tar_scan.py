"""Reads a tar that another program wrote: its samples, and their rows of an index."""

from __future__ import annotations

import posixpath
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from shards.image_header import Rejected, SourceImage, inspect_image, pillow_settings
from sr_dist.core.errors import first_line
from sr_dist.core.files import sha256, write_whole
from sr_dist.core.tar_end import problem_at_end
from sr_dist.data.format import (
    HR_SUFFIXES,
    MAX_KEY,
    MODES,
    NO_CLASS,
    ShardEntry,
    ShardError,
    content_hash,
    index_bytes,
    index_name,
)
from sr_dist.data.jpeg_rows import can_be_cut

OTHER_LR = [f"lr.{suffix}" for suffix in HR_SUFFIXES if suffix != "png"]
MOST_CLASSES = 10_000_000  # the manifest has a name for each; larger numbers are identities or hashes


@dataclass(frozen=True)
class ScannedTar:
    """What the manifest needs to know of one tar."""

    entry: ShardEntry
    rejects: list[dict[str, str]]
    min_side: int
    num_classes: int  # the highest number of a class, plus one
    unlabelled: int  # samples without a class
    scales: set[int]  # of stored LR; 0 stands for samples without LR
    unmarked: int = 0  # JPEGs without restart markers


@dataclass
class TarSample:
    """The members of a tar that share a key: (suffix, offset of the data, data or why there are none)."""

    key: str
    members: list[tuple[str, int, bytes | Rejected]]


@pillow_settings()
def scan_tar(number: int, path: Path, out: Path) -> tuple[int, tuple[int, ScannedTar]]:
    """Writes the index of one tar into `out`: (1, (number, scanned tar))."""
    rows: list[dict[str, Any]] = []
    rejects: list[dict[str, str]] = []
    keys: set[str] = set()
    unmarked = 0
    with open(path, "rb") as file:
        for sample in samples(file, path):
            try:
                if sample.key in keys:
                    raise Rejected("the key occurs twice in this tar; the members of a sample must follow each other")
                rows.append(index_row(sample))
                keys.add(sample.key)
                unmarked += lacks_markers(sample)
            except Rejected as problem:
                rejects.append({"key": sample.key[:MAX_KEY], "path": str(path), "reason": str(problem)})
    write_whole(out / index_name(path.name), index_bytes(rows, 0))
    entry = ShardEntry(name=path.name, bytes=path.stat().st_size, samples=len(rows), sha256=sha256(path))
    sides = [min(row["width"], row["height"]) for row in rows]
    scales = {row["width"] // row["lr_width"] if "lr_width" in row else 0 for row in rows}
    num_classes = max((row["class"] + 1 for row in rows), default=0)
    unlabelled = sum(row["class"] == NO_CLASS for row in rows)
    return 1, (number, ScannedTar(entry, rejects, min(sides, default=0), num_classes, unlabelled, scales, unmarked))


def samples(file: IO[bytes], path: Path) -> Iterator[TarSample]:
    """Groups members as WebDataset does: neighbours whose names agree up to the first dot."""
    sample = TarSample("", [])
    for name, offset, data in members(file, path):
        folder, _, last = name.rpartition("/")
        stem, dot, suffix = last.partition(".")
        if not dot or not stem or name.startswith("__"):
            continue
        key = f"{folder}/{stem}" if folder else stem
        if key != sample.key:
            if sample.members:
                yield sample
            sample = TarSample(key, [])
        sample.members.append((suffix.lower(), offset, data))
    if sample.members:
        yield sample


def members(file: IO[bytes], path: Path) -> Iterator[tuple[str, int, bytes | Rejected]]:
    """(name, offset of the data, data or why there are none) of every file. A link is the earlier member that it names.

    tarfile takes a damaged header for the end of the tar; this does not.
    """
    size, last = path.stat().st_size, -1
    places: dict[str, tuple[int, int]] = {}  # name -> offset and size of the data
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep all headers in memory
                if member.offset_data <= last or member.size < 0 or member.offset_data + member.size > size:
                    raise ShardError(f"'{path}': the header of '{member.name}' is damaged, or the tar is cut short")
                last = member.offset_data
                if member.isdir():
                    continue
                place = place_of(member, places)
                if isinstance(place, Rejected):
                    yield member.name, 0, place
                    continue
                places[posixpath.normpath(member.name)] = place
                file.seek(place[0])
                yield member.name, place[0], file.read(place[1])
            end = tar.offset
    except ShardError:
        raise
    except Exception as problem:  # damaged headers make tarfile raise errors of many types
        raise ShardError(f"'{path}' is not a tar, or is damaged: {first_line(problem)}") from None
    check_end(file, path, end)


def place_of(member: tarfile.TarInfo, places: Mapping[str, tuple[int, int]]) -> tuple[int, int] | Rejected:
    """Offset and size of a member's data, or why they cannot be read alone. `places`: those of earlier members."""
    if member.isreg() and not member.issparse():
        return member.offset_data, member.size
    if not (member.islnk() or member.issym()):
        return Rejected(f"'{shortened(member.name)}' is neither a plain file nor a link")
    target = member.linkname if member.islnk() else posixpath.join(posixpath.dirname(member.name), member.linkname)
    place = places.get(posixpath.normpath(target))
    reason = f"'{shortened(member.name)}' is a link to '{shortened(member.linkname)}', which is no earlier member of the tar"
    return place or Rejected(reason)


def shortened(name: str) -> str:
    return name if len(name) <= 200 else f"{name[:200]}..."


def check_end(file: IO[bytes], path: Path, end: int) -> None:
    """Only zeros may follow the end of the tar."""
    if problem := problem_at_end(end, next_nonzero(file, end)):
        raise ShardError(f"'{path}': {problem}")


def next_nonzero(file: IO[bytes], offset: int) -> int | None:
    file.seek(offset)
    while piece := file.read(1 << 20):
        if rest := piece.lstrip(b"\0"):
            return file.tell() - len(rest)
    return None


def index_row(sample: TarSample) -> dict[str, Any]:
    """The sample's row of the index. Raises `Rejected` if training cannot read it."""
    key = sample.key.encode("utf-8", "replace")
    if len(key) > MAX_KEY:
        raise Rejected(f"its key has {len(key)} bytes; a key has at most {MAX_KEY}, because every sample of an index has as many")
    images: list[tuple[int, bytes]] = []
    lr_images: list[tuple[int, bytes]] = []
    labels: list[bytes] = []
    for suffix, offset, data in sample.members:
        if suffix in OTHER_LR:
            raise Rejected(f"its LR is a .{suffix}; stored LR is PNG")
        if suffix not in (*HR_SUFFIXES, "lr.png", "cls"):
            continue
        if isinstance(data, Rejected):
            raise data
        if suffix == "cls":
            labels.append(data)
        else:
            (lr_images if suffix == "lr.png" else images).append((offset, data))
    if len(images) != 1 or len(lr_images) > 1 or len(labels) > 1:
        raise Rejected(
            f"{len(images)} images, {len(lr_images)} LR images and {len(labels)} classes; "
            "a sample has one image and at most one of the others"
        )
    hr = readable_image(images[0][1])
    row = {"key": key, "class": class_number(labels[0]) if labels else NO_CLASS}
    row |= {"width": hr.width, "height": hr.height, "mode": MODES.index(hr.mode), "hash": content_hash(hr.data)}
    row |= member_columns("hr", *images[0])
    if lr_images:
        lr = readable_image(lr_images[0][1])
        if hr.width // lr.width * lr.width != hr.width or hr.width // lr.width * lr.height != hr.height:
            raise Rejected(f"HR {hr.width} x {hr.height} is not a multiple of LR {lr.width} x {lr.height}")
        row |= {"lr_width": lr.width, "lr_height": lr.height, **member_columns("lr", *lr_images[0])}
    return row


def lacks_markers(sample: TarSample) -> bool:
    """Whether its HR image is a JPEG that training decodes whole, since it has no restart markers."""
    images = [data for suffix, _, data in sample.members if suffix in HR_SUFFIXES and isinstance(data, bytes)]
    return any(data.startswith(b"\xff\xd8") and not can_be_cut(data) for data in images)


def member_columns(member: str, offset: int, data: bytes) -> dict[str, int]:
    return {f"{member}_offset": offset, f"{member}_bytes": len(data), f"{member}_crc32": zlib.crc32(data)}


def readable_image(data: bytes) -> SourceImage:
    image = inspect_image(data)
    if image.conversion:
        raise Rejected(f"{image.conversion}: training cannot read it unchanged; shards.build converts it")
    return image


def class_number(data: bytes) -> int:
    text = data.strip()
    if not text.isdigit():
        raise Rejected(f"the class {text[:20]!r} is not a number from 0 up")
    if len(text) > 20 or int(text) >= MOST_CLASSES:
        raise Rejected(f"the class {text[:20].decode()} is beyond {MOST_CLASSES - 1}, the highest number of a class")
    return int(text)
