"""Made images as shards, for commands that need training data of any kind: smooth colours, edges and noise, with classes."""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sr_dist.core.files import sha256
from sr_dist.data.format import (
    FORMAT,
    Manifest,
    ShardEntry,
    attribute_bits,
    content_hash,
    index_bytes,
    index_name,
    write_manifest,
)

CLASSES = ("a", "b", "c")
SHARD = "made-000000.tar"


def make_shards(folder: Path, images: int, side: int, attributes: Sequence[str] = ()) -> Path:
    """A shard of images of this size. Every attribute is true of about half of them."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / SHARD, "w") as tar:
        rows = [_row(tar, number, side, attributes) for number in range(images)]
    (folder / index_name(SHARD)).write_bytes(index_bytes(rows, -(-len(attributes) // 8)))
    entry = ShardEntry(name=SHARD, bytes=(folder / SHARD).stat().st_size, samples=images, sha256=sha256(folder / SHARD))
    names = {"classes": CLASSES, "attributes": tuple(attributes)}
    write_manifest(folder, Manifest(format=FORMAT, samples=images, min_side=side, order={"seed": 0}, shards=(entry,), **names))
    return folder


def _row(tar: tarfile.TarFile, number: int, side: int, attributes: Sequence[str]) -> dict[str, Any]:
    """Adds an image and its class to the tar: -> its row of the index."""
    file = io.BytesIO()
    Image.fromarray(picture(number, side)).save(file, "PNG")
    key, label = f"{number:04d}", number % len(CLASSES)
    bits = attribute_bits(_answers(number, len(attributes)), max(-(-len(attributes) // 8), 1))
    offset = _add(tar, f"{key}.png", file.getvalue())
    _add(tar, f"{key}.cls", str(label).encode())
    size = {"width": side, "height": side, "hr_offset": offset, "hr_bytes": len(file.getvalue())}
    return {
        "key": key.encode(), "class": label, "attributes": bits, "hash": content_hash(file.getvalue()),
        "hr_crc32": zlib.crc32(file.getvalue()), **size,
    }  # fmt: skip


def _answers(number: int, count: int) -> Iterator[bool]:
    generator = np.random.default_rng([number, 1])
    return (bool(value) for value in generator.random(count) < 0.5)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Returns where the data begin."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    begin = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(member, io.BytesIO(data))
    return begin


def picture(number: int, side: int) -> np.ndarray:
    """(side, side, 3) of uint8: waves of three colours, a bright square, and a little noise. The same for the same number."""
    generator = np.random.default_rng([number, 0])
    y, x = np.mgrid[:side, :side] / side
    waves = generator.uniform(1, 6, (3, 2)), generator.uniform(0, 6, 3)
    pixels = np.stack([np.sin(a * x * 3 + b * y * 3 + c) for (a, b), c in zip(*waves, strict=True)], -1) * 70 + 110
    corner, size = generator.integers(0, side // 2 + 1, 2), side // 3 + 1
    pixels[corner[0] : corner[0] + size, corner[1] : corner[1] + size] += generator.uniform(20, 80, 3)
    return np.clip(pixels + generator.normal(0, 4, pixels.shape), 0, 255).astype(np.uint8)
