"""Shortens a PNG to its upper rows, so that the rows below a crop are not decoded.

The rows of a PNG are compressed one after another, and a row depends only on those above it. So a smaller height in the header is
enough: a decoder stops after that many rows. It then never sees the checksum at the end of the pixels, so those of the chunks are
checked here: a damaged file is not cut.

    signature | IHDR: width, height, ..., interlace | crc | the rest  ->  signature | IHDR: width, bottom, ... | crc | the rest
"""

from __future__ import annotations

import struct
import zlib

from sr_dist.core.pixels import MAX_PIXELS

BEGIN = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
IHDR = slice(12, 29)  # its name and its content, which the crc covers
HEADER = struct.Struct(">IIBBBBB")  # width, height, depth, colour, compression, filter, interlace
CHUNK = struct.Struct(">I4s")  # length and name, before the content and its crc


def upper_rows(data: bytearray, size: tuple[int, int], bottom: int) -> bytearray:
    """A PNG of the pixel rows [0, bottom). `data` itself where it is no PNG, interlaced, damaged, huge, or not of `size`
    (height, width)."""
    if not 0 < bottom < size[0] or len(data) < IHDR.stop + 4 or data[: len(BEGIN)] != BEGIN:
        return data
    width, height, *_, interlace = HEADER.unpack_from(data, len(BEGIN))
    if (height, width) != size or interlace or height * width > MAX_PIXELS or not is_whole(data):
        return data
    cut = data[:]
    struct.pack_into(">I", cut, len(BEGIN) + 4, bottom)
    struct.pack_into(">I", cut, IHDR.stop, zlib.crc32(cut[IHDR]))
    return cut


def is_whole(data: bytearray) -> bool:
    """Whether every chunk up to the last one, IEND, has its checksum."""
    view, place, name = memoryview(data), 8, b""
    while name != b"IEND" and place + CHUNK.size <= len(data):
        length, name = CHUNK.unpack_from(data, place)
        end = place + CHUNK.size + length
        if end + 4 > len(data) or zlib.crc32(view[place + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            return False
        place = end + 4
    return name == b"IEND"
