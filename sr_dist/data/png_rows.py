"""Shortens a PNG to its upper rows, so that the rows below a crop are not decoded.

The rows of a PNG are compressed one after another, and a row depends only on those above it. So a smaller height in the header is
enough: a decoder stops after that many rows.

    signature | IHDR: width, height, ..., interlace | crc | the rest  ->  signature | IHDR: width, bottom, ... | crc | the rest
"""

from __future__ import annotations

import struct
import zlib

BEGIN = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
IHDR = slice(12, 29)  # its name and its content, which the crc covers
HEADER = struct.Struct(">IIBBBBBI")  # width, height, depth, colour, compression, filter, interlace, crc


def upper_rows(data: bytearray, size: tuple[int, int], bottom: int) -> bytearray:
    """A PNG of the pixel rows [0, bottom). `data` itself where it is no PNG, interlaced, or not of `size`, (height, width)."""
    if not 0 < bottom < size[0] or len(data) < IHDR.stop + 4 or data[: len(BEGIN)] != BEGIN:
        return data
    width, height, *_, interlace, crc = HEADER.unpack_from(data, len(BEGIN))
    if (height, width) != size or interlace or crc != zlib.crc32(data[IHDR]):
        return data
    cut = data[:]
    struct.pack_into(">I", cut, len(BEGIN) + 4, bottom)
    struct.pack_into(">I", cut, IHDR.stop, zlib.crc32(cut[IHDR]))
    return cut
