"""One shard: a tar and its index, each appearing under its name whole or not at all. Equal items give equal bytes."""

from __future__ import annotations

import hashlib
import io
import os
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from shards.items import Item
from sr_dist.data.format import MODES, ShardEntry, attribute_bits, content_hash, index_bytes, index_name, member_header
from sr_dist.errors import UserError, first_line
from sr_dist.files import write_whole

FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
# A file without an ending after its (last) beginning of pixels was cut short; what some cameras write behind it is no harm.
PIXELS = {"JPEG": b"\xff\xda", "PNG": b"IDAT"}
ENDINGS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
Image.MAX_IMAGE_PIXELS = None  # the pixel cap below is ours, and read from the header


class Rejected(Exception):
    """An input that cannot become a sample; the reason goes into rejects.jsonl."""


@dataclass(frozen=True)
class Limits:
    min_side: int = 1
    max_pixels: int = 200_000_000
    stop_at_first: bool = False  # rejected input


@dataclass
class WrittenShard:
    entry: ShardEntry
    rejects: list[dict[str, Any]]
    min_side: int  # of its images; 0 when it has none


def write_shard(
    folder: Path, name: str, items: Iterable[Item], read: Callable[[Item], bytes], attributes: int, limits: Limits
) -> WrittenShard:
    """Writes `name` and its index into the folder."""
    aside = folder / f".{name}.{os.getpid()}"
    rows: list[dict[str, Any]] = []
    rejects: list[dict[str, Any]] = []
    digest = hashlib.sha256()
    attribute_bytes = (attributes + 7) // 8
    place = 0
    try:
        with open(aside, "wb") as tar:

            def add(member: str, data: bytes) -> int:
                """Appends one member and returns where its data begins."""
                nonlocal place
                block = member_header(member, len(data)) + data + bytes(-len(data) % 512)
                tar.write(block)
                digest.update(block)
                place += len(block)
                return place - len(block) + 512

            for item in items:
                try:
                    data = read(item)
                    row = describe(data, limits)
                except (Rejected, OSError) as problem:
                    if limits.stop_at_first:
                        raise UserError(f"on_bad: '{item.path}' ({item.key}): {problem}") from None
                    rejects.append({"key": item.key, "path": item.path, "reason": str(problem)})
                    continue
                row["hr_offset"] = add(f"{item.key}.{row.pop('suffix')}", data)
                if item.label >= 0:
                    add(f"{item.key}.cls", str(item.label).encode())
                row.update(key=item.key.encode(), attributes=attribute_bits(item.attributes, max(attribute_bytes, 1)))
                row["class"] = item.label
                rows.append(row)
            end = bytes(1024)
            tar.write(end)
            digest.update(end)
            tar.flush()
            os.fsync(tar.fileno())
        write_whole(folder / index_name(name), index_bytes(rows, attribute_bytes))
        os.replace(aside, folder / name)
    finally:
        aside.unlink(missing_ok=True)
    entry = ShardEntry(name=name, bytes=place + 1024, samples=len(rows), sha256=digest.hexdigest())
    return WrittenShard(entry, rejects, min((min(row["width"], row["height"]) for row in rows), default=0))


def describe(data: bytes, limits: Limits) -> dict[str, Any]:
    """The index columns that an image's bytes tell, from its header; or the reason why it is no sample."""
    if not data:
        raise Rejected("the file is empty")
    try:
        with Image.open(io.BytesIO(data)) as image:
            kind, mode, (width, height) = image.format or "?", image.mode, image.size
    except UnidentifiedImageError:
        raise Rejected("not an image that Pillow knows") from None
    except (OSError, SyntaxError, ValueError) as problem:
        raise Rejected(f"not an image: {first_line(problem)[:120]}") from None
    if kind not in FORMATS:
        raise Rejected(f"format {kind} is not one of {', '.join(FORMATS)}")
    if kind in ENDINGS and data.find(ENDINGS[kind], data.rfind(PIXELS[kind])) < 0:
        raise Rejected(f"the {kind} data are cut short")
    if mode not in MODES:
        raise Rejected(f"colour mode {mode} is not one of {', '.join(MODES)}")
    if width * height > limits.max_pixels:
        raise Rejected(f"{width} x {height} is more than {limits.max_pixels} pixels")
    if min(width, height) < limits.min_side:
        raise Rejected(f"{width} x {height} is below min_side {limits.min_side}")
    return {
        "suffix": FORMATS[kind], "width": width, "height": height, "mode": MODES.index(mode),
        "hr_bytes": len(data), "hr_crc32": zlib.crc32(data), "hash": content_hash(data),
    }  # fmt: skip
