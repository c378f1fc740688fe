"""The part of a JPEG that shows some of its rows, so that no more of an image is decoded than its crop needs.

An encoder may begin every row of blocks anew, with a numbered marker before it: `shards.build` does. Between markers such a
file can be cut, and what is left is a JPEG again:

    header | row 0 | RST0 | row 1 | RST1 | row 2 | RST2 | row 3 | end  ->  header with another height | row 1 | RST0 | row 2 | end

A JPEG without these markers, or of another build than the usual one, stays whole.
"""

from __future__ import annotations

import re
import struct
from itertools import islice
from typing import NamedTuple

MARKS = re.compile(rb"\xff[\xd0-\xd7]")  # RST0 to RST7, again and again; among pixels any other FF is followed by 00
RST0 = 0xD0
END = b"\xff\xd9"
SEQUENTIAL, RESTARTS, SCAN = (0xC0, 0xC1), 0xDD, 0xDA  # a frame whose pixels can come in one scan
CONTEXT = 1  # rows beyond that pixels at a border depend on: colour at half size is enlarged by a triangle


class Layout(NamedTuple):
    """How the rows of a JPEG lie in its bytes."""

    height_at: int  # where the header says the height
    size: tuple[int, int]  # (height, width)
    step: int  # pixels in a row of blocks
    begin: int  # of the first row of blocks


def band(data: bytearray, size: tuple[int, int], top: int, bottom: int) -> tuple[bytearray, int]:
    """A JPEG that decodes to some rows of this one, and the number of the first: to those from `top` to before `bottom`, and
    what lies in the same rows of blocks. One that is not of this size (height, width) stays whole.
    """
    layout = _layout(data)
    if not layout or layout.size != size or top >= bottom:
        return data, 0
    rows = -(-size[0] // layout.step)
    first, last = max(top - CONTEXT, 0) // layout.step, min(-(-(bottom + CONTEXT) // layout.step), rows)
    marks = [mark.start() for mark in islice(MARKS.finditer(data, layout.begin), min(last, rows - 1))]
    if [data[mark + 1] for mark in marks] != [RST0 + row % 8 for row in range(min(last, rows - 1))]:
        return data, 0
    begins = [layout.begin, *(mark + 2 for mark in marks)]  # of the rows up to the last, and of the one behind it
    to_the_end = last == rows
    kept = data[begins[first] :] if to_the_end else data[begins[first] : begins[last] - 2] + END
    cut = data[: layout.begin] + kept
    struct.pack_into(">H", cut, layout.height_at, (size[0] if to_the_end else last * layout.step) - first * layout.step)
    for row in range(first + 1, last):
        cut[layout.begin + begins[row] - begins[first] - 1] = RST0 + (row - first - 1) % 8
    return cut, first * layout.step


def _layout(data: bytearray) -> Layout | None:
    """None for a JPEG that cannot be cut."""
    place, every, frame = 2, 0, None
    try:
        while data[place] == 0xFF:
            marker, length = data[place + 1], data[place + 2] << 8 | data[place + 3]
            if marker in SEQUENTIAL:
                frame = place
            elif marker == RESTARTS:
                every = data[place + 4] << 8 | data[place + 5]
            elif marker == SCAN:
                return _in_rows(data, frame, data[place + 4], every, place + 2 + length) if frame and every else None
            place += 2 + length
    except (IndexError, ValueError, struct.error):  # the header is cut short
        pass
    return None


def _in_rows(data: bytearray, frame: int, in_scan: int, every: int, begin: int) -> Layout | None:
    """Where all parts of the pixels (brightness, two of colour) come together, and `every` so many units a row ends."""
    height, width, parts = struct.unpack_from(">HHB", data, frame + 5)
    across, down = 1, 1  # blocks in a unit; of a single part it is always one
    if parts > 1:
        samplings = data[frame + 11 : frame + 10 + 3 * parts : 3]
        across, down = max(sampling >> 4 for sampling in samplings), max(sampling & 15 for sampling in samplings)
    whole_rows = parts == in_scan and across and every == -(-width // (8 * across))
    return Layout(frame + 5, (height, width), 8 * down, begin) if whole_rows and down else None
