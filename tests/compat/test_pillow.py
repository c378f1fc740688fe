"""The parts of Pillow beyond its documented interface that the package uses."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image


def png(depth: int, color: int, row: bytes) -> bytes:
    """A PNG of 1 x 1 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("depth", "deep"), [(8, False), (16, True)])
def test_tile_shows_16_bits(depth, deep):
    """data/folder_images.py finds 16-bit RGB by the raw mode in `tile`, because Pillow reads it as 8 bits."""
    with Image.open(io.BytesIO(png(depth, 2, bytes(3 * depth // 8)))) as image:
        assert image.mode == "RGB"
        assert any(";16" in str(tile[3]) for tile in image.tile) == deep


def test_restart_marker_rows():
    """shards/pixels.py: one restart marker (FF D0 to FF D7) after every row of blocks but the last."""
    file = io.BytesIO()
    Image.fromarray(np.full((32, 16), 100, np.uint8)).save(file, format="JPEG", restart_marker_rows=1)
    data = file.getvalue()
    assert sum(data.count(bytes([0xFF, 0xD0 + number])) for number in range(8)) == 32 // 8 - 1
