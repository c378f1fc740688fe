"""The part of a JPEG that shows some of its rows, so that no more of an image is decoded than its crop needs.

An encoder may begin every row of blocks anew, with a numbered marker before it: `shards.build` does. Between markers such a
file can be cut, and what is left is a JPEG again:

    header | row 0 | RST0 | row 1 | RST1 | row 2 | RST2 | row 3 | end  ->  header with another height | row 1 | RST0 | row 2 | end

A JPEG without these markers, or of another build than the usual one, stays whole.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

BEGINS_ANEW = [bytes([0xFF, 0xD0 + number]) for number in range(8)]  # the markers count from 0 to 7, again and again
END = b"\xff\xd9"
SEQUENTIAL = (0xC0, 0xC1)  # frames whose pixels come in one scan
OTHER_FRAMES = {*range(0xC2, 0xD0)} - {0xC4, 0xC8, 0xCC}  # progressive, arithmetic and others; three in between are tables
RESTARTS, SCAN = 0xDD, 0xDA
CONTEXT = 2  # rows beyond, which pixels near a border depend on: colour at half size is enlarged by a triangle


class Layout(NamedTuple):
    """How the rows of a JPEG lie in its bytes."""

    height_at: int  # where the header says the height
    height: int
    step: int  # pixels in a row of blocks
    begin: int  # of the first row of blocks


def band(data: bytearray, top: int, bottom: int) -> tuple[bytearray, int]:
    """A JPEG that decodes to some rows of this one, and the number of the first: to those from `top` to before `bottom`, and
    what lies in the same rows of blocks.
    """
    layout = layout_of(data)
    if not layout or bottom > layout.height:
        return data, 0
    rows = -(-layout.height // layout.step)
    first, last = max(top - CONTEXT, 0) // layout.step, min(-(-(bottom + CONTEXT) // layout.step), rows)
    begins = [layout.begin]  # of the rows of blocks up to the last, and of the one behind it
    for row in range(min(last, rows - 1)):
        place = data.find(BEGINS_ANEW[row % 8], begins[-1])
        if place < 0:
            return data, 0
        begins.append(place + 2)
    to_the_end = last == rows
    kept = data[begins[first] :] if to_the_end else data[begins[first] : begins[last] - 2] + END
    height = (layout.height if to_the_end else last * layout.step) - first * layout.step
    cut = data[: layout.begin] + kept
    struct.pack_into(">H", cut, layout.height_at, height)
    for row in range(first + 1, last):
        cut[layout.begin + begins[row] - begins[first] - 1] = BEGINS_ANEW[(row - first - 1) % 8][1]
    return cut, first * layout.step


def layout_of(data: bytearray) -> Layout | None:
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
                return _layout(data, frame, data[place + 4], every, place + 2 + length) if frame and every else None
            elif marker in OTHER_FRAMES:
                return None
            place += 2 + length
    except (IndexError, ValueError, struct.error):  # the header is cut short
        pass
    return None


def _layout(data: bytearray, frame: int, in_scan: int, every: int, begin: int) -> Layout | None:
    _, height, width, parts = struct.unpack_from(">BHHB", data, frame + 4)
    across, down = 1, 1  # blocks in the smallest unit; of a single part each is one
    if parts > 1:
        samplings = data[frame + 11 : frame + 10 + 3 * parts : 3]
        across, down = max(sampling >> 4 for sampling in samplings), max(sampling & 15 for sampling in samplings)
    whole_rows = parts == in_scan and across and every == -(-width // (8 * across))
    return Layout(frame + 5, height, 8 * down, begin) if whole_rows and height and down else None
