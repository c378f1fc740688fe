"""What the header of an encoded image says, and the reasons why an input is rejected before it is decoded."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from sr_dist.core.pixels import FORMATS, MAX_PIXELS, reading_problem, without_pillows_limit
from sr_dist.data.format import MODES

STORED_FORMATS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}  # Pillow's name -> suffix of the member
# A file without an end marker after the (last) start of its pixels was cut short. Some cameras append bytes to a whole file.
PIXEL_STARTS = {"JPEG": b"\xff\xda", "MPO": b"\xff\xda", "PNG": b"IDAT"}
END_MARKERS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
PLAIN_MARKERS = {0xC4, 0xDB, 0xDD, 0xE0, 0xED, 0xEE, 0xFE}  # tables, JFIF, Photoshop, Adobe, comment
ORIENTATION = 0x0112  # the EXIF tag
EIGHT_BITS = ("RGB", "L", "RGBA", "LA", "P", "PA", "1", "CMYK", "YCbCr")


class Rejected(Exception):
    """An input that cannot become a sample. The message is the reason in rejects.jsonl."""

    of_lr = False  # True: the LR image of a pair is the cause


@dataclass(frozen=True)
class SourceImage:
    """An encoded image and what its header says. `width` and `height` are those of the upright image."""

    data: bytes
    kind: str  # the format, as Pillow calls it
    mode: str
    width: int
    height: int
    turned: bool  # by EXIF

    @property
    def conversion(self) -> str | None:
        """Why the bytes cannot be stored unchanged, or None."""
        if self.kind not in STORED_FORMATS:
            return self.kind
        return "turned by EXIF" if self.turned else None if self.mode in MODES else f"colour mode {self.mode}"


@contextmanager
def pillow_settings() -> Iterator[None]:
    """Pillow opens images of any size (`inspect_image` has the limit) and does not warn of damaged metadata."""
    with without_pillows_limit(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def inspect_image(data: bytes, max_pixels: int = MAX_PIXELS, min_side: int = 1) -> SourceImage:
    """Reads the header, without decoding. Raises `Rejected` if the image cannot be a sample."""
    if not data:
        raise Rejected("the file is empty")
    image = read_plain_jpeg(data) or read_header(data)
    if is_cut_short(image.kind, data):
        raise Rejected(f"the {image.kind} data are cut short")
    if image.mode not in EIGHT_BITS and not image.mode.startswith("I"):
        raise Rejected(f"colour mode {image.mode} has no clear meaning in 8 bits")
    if image.width * image.height > max_pixels:
        raise Rejected(f"{image.width} x {image.height} is more than {max_pixels} pixels")
    if min(image.width, image.height) < min_side:
        raise Rejected(f"{image.width} x {image.height} is below min_side {min_side}")
    return image


def read_header(data: bytes) -> SourceImage:
    """The header as Pillow reads it."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            kind, (width, height) = image.format or "?", image.size
            animated = kind != "MPO" and getattr(image, "is_animated", False)
            orientation = image.getexif().get(ORIENTATION, 1) if kind == "TIFF" or "exif" in image.info else 1
    except UnidentifiedImageError:
        raise Rejected("not an image of a known format") from None
    except Exception as problem:  # damaged headers make Pillow raise errors of many types
        raise Rejected(f"not an image: {reading_problem(problem)[:120]}") from None
    if animated:
        raise Rejected(f"a {kind} of several images")
    if orientation in (5, 6, 7, 8):
        width, height = height, width
    return SourceImage(data, kind, image.mode, width, height, turned=orientation in range(2, 9))


def read_plain_jpeg(data: bytes) -> SourceImage | None:
    """The header of a JPEG without EXIF, second image or CMYK; else None. Ten times as fast as Pillow."""
    place, size = 2, None
    while data.startswith(b"\xff\xd8") and place + 10 < len(data) and data[place] == 0xFF:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if marker in (0xC0, 0xC1, 0xC2) and not size:
            bits, height, width, channels = struct.unpack_from(">BHHB", data, place + 4)
            if bits != 8 or channels not in (1, 3) or not width or not height:
                return None
            size = "RGB" if channels == 3 else "L", width, height
        elif marker == 0xDA:
            return SourceImage(data, "JPEG", *size, turned=False) if size else None
        elif marker not in PLAIN_MARKERS or length < 2:
            return None
        place += 2 + length
    return None


def is_cut_short(kind: str, data: bytes) -> bool:
    if kind == "WEBP":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    if kind not in END_MARKERS or data.endswith(END_MARKERS[kind]):
        return False
    return data.find(END_MARKERS[kind], data.rfind(PIXEL_STARTS[kind])) < 0
