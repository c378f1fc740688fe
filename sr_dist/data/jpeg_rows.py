"""Cuts some rows out of a JPEG, so that only the part of an image that a crop needs is decoded.

An encoder can write a numbered restart marker between rows of blocks, as `shards.build` does. Such a file can be cut at its
markers, and the result is a JPEG again:

    header | row 0 | RST0 | row 1 | RST1 | row 2 | RST2 | row 3 | end  ->  header with another height | row 1 | RST0 | row 2 | end

A JPEG without these markers, or with an unusual structure, is not cut.
"""

from __future__ import annotations

import re
import struct
from itertools import islice
from typing import NamedTuple

MARKERS = re.compile(rb"\xff[\xd0-\xd7]")  # RST0 to RST7 in turn; any other FF in the image data is followed by 00
RST0 = 0xD0
END = b"\xff\xd9"
SEQUENTIAL, RESTARTS, SCAN = (0xC0, 0xC1), 0xDD, 0xDA  # SEQUENTIAL frames can have a single scan
FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))  # all kinds
CONTEXT = 1  # rows beyond the border that its pixels depend on: subsampled colour is enlarged with a triangle filter


class Layout(NamedTuple):
    """The structure of a JPEG."""

    height_at: int  # offset of the height in the header
    size: tuple[int, int]  # (height, width)
    step: int  # the height of a row of blocks in pixels
    begin: int  # offset of the first row of blocks


def band(data: bytearray, size: tuple[int, int], top: int, bottom: int) -> tuple[bytearray, int]:
    """A JPEG of the rows of blocks that contain the pixel rows [top, bottom), and the number of its first pixel row.

    A JPEG whose size differs from `size`, (height, width), is not cut.
    """
    layout = _layout(data)
    if not layout or layout.size != size or top >= bottom:
        return data, 0
    rows = -(-size[0] // layout.step)
    first, last = max(top - CONTEXT, 0) // layout.step, min(-(-(bottom + CONTEXT) // layout.step), rows)
    markers = [match.start() for match in islice(MARKERS.finditer(data, layout.begin), min(last, rows - 1))]
    if [data[marker + 1] for marker in markers] != [RST0 + row % 8 for row in range(min(last, rows - 1))]:
        return data, 0
    begins = [layout.begin, *(marker + 2 for marker in markers)]  # of the rows up to the last one, and of the next
    to_the_end = last == rows
    body = data[begins[first] :] if to_the_end else data[begins[first] : begins[last] - 2] + END
    cut = data[: layout.begin] + body
    struct.pack_into(">H", cut, layout.height_at, (size[0] if to_the_end else last * layout.step) - first * layout.step)
    for row in range(first + 1, last):
        cut[layout.begin + begins[row] - begins[first] - 1] = RST0 + (row - first - 1) % 8
    return cut, first * layout.step


def can_be_cut(data: bytes | bytearray) -> bool:
    """Whether the header states a restart marker per row of blocks."""
    return _layout(data) is not None


def stated_size(data: bytes | bytearray) -> tuple[int, int] | None:
    """(height, width) in the header of a JPEG of any kind; None where it has none before its pixels."""
    offset = 2
    while offset + 9 <= len(data) and data[offset] == 0xFF and data[offset + 1] != SCAN:
        if data[offset + 1] in FRAMES:
            return data[offset + 5] << 8 | data[offset + 6], data[offset + 7] << 8 | data[offset + 8]
        offset += 1 if data[offset + 1] == 0xFF else 2 + (data[offset + 2] << 8 | data[offset + 3])  # 0xFF may be repeated
    return None


def _layout(data: bytes | bytearray) -> Layout | None:
    """The structure of a JPEG, or None if it cannot be cut."""
    offset, interval, frame = 2, 0, None
    try:
        while data[offset] == 0xFF:
            marker, length = data[offset + 1], data[offset + 2] << 8 | data[offset + 3]
            if marker in SEQUENTIAL:
                frame = offset
            elif marker == RESTARTS:
                interval = data[offset + 4] << 8 | data[offset + 5]
            elif marker == SCAN:
                return _row_layout(data, frame, data[offset + 4], interval, offset + 2 + length) if frame and interval else None
            offset += 2 + length
    except (IndexError, ValueError, struct.error):  # the header is truncated
        pass
    return None


def _row_layout(data: bytes | bytearray, frame: int, scan_components: int, interval: int, begin: int) -> Layout | None:
    """None unless one scan has all components (luma and two of chroma), and the restart interval is one row of blocks."""
    height, width, components = struct.unpack_from(">HHB", data, frame + 5)
    across, down = 1, 1  # blocks in a unit; always one for a single component
    if components > 1:
        samplings = data[frame + 11 : frame + 10 + 3 * components : 3]
        across, down = max(sampling >> 4 for sampling in samplings), max(sampling & 15 for sampling in samplings)
    by_rows = components == scan_components and across and interval == -(-width // (8 * across))
    return Layout(frame + 5, (height, width), 8 * down, begin) if by_rows and down else None
