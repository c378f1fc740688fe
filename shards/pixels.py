"""The bytes of an image -> the pictures that are stored: as they are, or cropped, resized, cut into tiles and written anew.

What cannot stay as it is but has a clear meaning (CMYK, palettes, 1 bit, BMP, TIFF, still GIF, photographs that EXIF turns)
becomes an upright PNG of the same pixels in 8 bits, RGB or grey; alpha is left out, as training leaves it out.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import Field

from sr_dist.core.config import Absent, Settings
from sr_dist.core.errors import UserError, first_line
from sr_dist.data.format import MODES

FORMATS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
NAMES = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
# Every row of blocks of a JPEG begins anew, which costs some bytes in a thousand: training decodes the rows of its crop alone.
LIKE_THIS = {"jpg": {"restart_marker_rows": 1}}
# A file without an ending after its (last) beginning of pixels was cut short; what some cameras write behind it is no harm.
PIXELS = {"JPEG": b"\xff\xda", "MPO": b"\xff\xda", "PNG": b"IDAT"}
ENDINGS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
PLAIN_MARKERS = {0xC4, 0xDB, 0xDD, 0xE0, 0xED, 0xEE, 0xFE}  # tables, JFIF, Photoshop, Adobe, comment
ORIENTATION = 0x0112  # the EXIF tag
EIGHT_BITS = ("RGB", "L", "RGBA", "LA", "P", "PA", "1", "CMYK", "YCbCr")
Image.MAX_IMAGE_PIXELS = None  # the pixel cap below is ours, and read from the header
warnings.filterwarnings("ignore", module=r"PIL\.")  # of damaged metadata; damaged pixels are errors

Result = TypeVar("Result")
Pixels = Annotated[int | None, Absent, Field(gt=0)]
Box = tuple[float, float, float, float]  # left, top, right, bottom


class Preparation(Settings):
    """What happens to every image between its file and its shard, in this order."""

    keep: bool = False
    max_pixels: Annotated[int, Field(gt=0)] = 200_000_000
    min_side: Annotated[int, Field(gt=0)] = 1
    centre_crop: Pixels = None
    resize: Pixels = None
    resize_mode: Literal["short", "squash", "crop"] = "short"
    tile: Pixels = None
    stride: Pixels = None
    format: Annotated[Literal["jpg", "png", "webp"] | None, Absent] = None
    quality: Annotated[int, Field(ge=1, le=100)] = 95

    @property
    def rewrites(self) -> bool:
        return bool(self.centre_crop or self.resize or self.tile or self.format)

    def check(self, scale: int | None) -> None:
        """Refuses options that contradict each other, and sides that a stored LR could not have."""
        if self.keep and self.rewrites:
            raise UserError("keep: the bytes of images are kept, or changed by centre_crop, resize, tile or format; not both")
        if self.stride and not self.tile:
            raise UserError("stride: is the way from tile to tile; give --tile=PIXELS too")
        if "resize_mode" in self.model_fields_set and not self.resize:
            raise UserError("resize_mode: says how --resize=PIXELS is meant; give that too")
        if "quality" in self.model_fields_set and (not self.rewrites or self.format == "png"):
            raise UserError(
                "quality: is of JPEG and WebP that are written anew, but none would be; give --format=jpg or webp too"
            )
        for name in ("centre_crop", "resize", "tile", "stride"):
            side = getattr(self, name)
            if side and side % (scale or 1):
                raise UserError(f"{name}: {side} is not a multiple of scale {scale}")


class Rejected(Exception):
    """An input that cannot become a sample; the reason goes into rejects.jsonl."""

    of_lr = False  # whether the LR image of a pair is the cause


class Picture(NamedTuple):
    """One member of a tar."""

    data: bytes
    suffix: str
    width: int
    height: int
    mode: str


class Prepared(NamedTuple):
    """A sample of an input: the input itself, or a tile of it, whose place ends its key."""

    place: str
    hr: Picture
    lr: Picture | None
    change: str | None = None  # why the bytes of HR could not be kept


@dataclass(frozen=True)
class Found:
    """What the header of an image says."""

    data: bytes
    kind: str
    mode: str
    width: int  # upright, as EXIF wants the image to be seen
    height: int
    turned: bool

    @property
    def change(self) -> str | None:
        """Why these bytes cannot be stored as they are."""
        if self.kind not in FORMATS:
            return self.kind
        return "turned by EXIF" if self.turned else None if self.mode in MODES else f"colour mode {self.mode}"


def prepared(hr_data: bytes, lr_data: bytes | None, how: Preparation, scale: int = 1) -> Iterator[Prepared]:
    """The samples of one input. A pair's LR is cropped, resized and cut like its HR, `scale` times smaller."""
    hr = found(hr_data, how)
    lr = of_lr(found, lr_data, how.model_copy(update={"min_side": 1})) if lr_data is not None else None
    if lr:
        check_pair(hr, lr, scale, exact=not how.resize)
    if not how.rewrites:
        yield Prepared("", kept(hr), of_lr(stored_lr, lr) if lr else None, hr.change)
        return
    box, (width, height) = geometry(hr.width, hr.height, how, scale)
    image, small = reshaped(pixels(hr), box, (width, height)), None
    if lr:
        place = shrunk(box, lr.width / hr.width, lr.height / hr.height)
        small = reshaped(of_lr(pixels, lr), place, (width // scale, height // scale))
    suffix = how.format or ("jpg" if FORMATS.get(hr.kind) == "jpg" else "png")
    for tile in tiles(width, height, how):
        lr_tile = encoded(small.crop(shrunk(tile, 1 / scale, 1 / scale)), "png") if small else None
        place_in_key = f"-{tile[0]:04d}-{tile[1]:04d}" if how.tile else ""
        yield Prepared(place_in_key, encoded(image.crop(tile), suffix, how.quality), lr_tile)


def of_lr(function: Callable[..., Result], *arguments: Any) -> Result:
    try:
        return function(*arguments)
    except Rejected as problem:
        problem.of_lr = True
        raise


def shrunk(box: Box, across: float, down: float) -> Box:
    return box[0] * across, box[1] * down, box[2] * across, box[3] * down


def found(data: bytes, how: Preparation) -> Found:
    """What the header tells, without decoding; or the reason why this is no sample."""
    if not data:
        raise Rejected("the file is empty")
    image = plain_jpeg(data) or header(data)
    if cut_short(image.kind, data):
        raise Rejected(f"the {image.kind} data are cut short")
    if image.mode not in EIGHT_BITS and not image.mode.startswith("I"):
        raise Rejected(f"colour mode {image.mode} has no clear meaning in 8 bits")
    if image.width * image.height > how.max_pixels:
        raise Rejected(f"{image.width} x {image.height} is more than {how.max_pixels} pixels")
    if min(image.width, image.height) < how.min_side:
        raise Rejected(f"{image.width} x {image.height} is below min_side {how.min_side}")
    return image


def header(data: bytes) -> Found:
    try:
        with Image.open(io.BytesIO(data)) as image:
            kind, (width, height) = image.format or "?", image.size
            moves = kind != "MPO" and getattr(image, "is_animated", False)
            turn = image.getexif().get(ORIENTATION, 1) if kind == "TIFF" or "exif" in image.info else 1
    except UnidentifiedImageError:
        raise Rejected("not an image that Pillow knows") from None
    except Exception as problem:  # whatever a mangled header makes Pillow raise
        raise Rejected(f"not an image: {first_line(problem)[:120]}") from None
    if moves:
        raise Rejected(f"a {kind} of several pictures")
    if turn in (5, 6, 7, 8):
        width, height = height, width
    return Found(data, kind, image.mode, width, height, turned=turn in range(2, 9))


def plain_jpeg(data: bytes) -> Found | None:
    """The header of a JPEG with nothing special in it (EXIF, a second picture, CMYK), ten times as fast as Pillow reads it."""
    place, size = 2, None
    while data.startswith(b"\xff\xd8") and place + 10 < len(data) and data[place] == 0xFF:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if marker in (0xC0, 0xC1, 0xC2) and not size:
            bits, height, width, channels = struct.unpack_from(">BHHB", data, place + 4)
            if bits != 8 or channels not in (1, 3) or not width or not height:
                return None
            size = "RGB" if channels == 3 else "L", width, height
        elif marker == 0xDA:
            return Found(data, "JPEG", *size, turned=False) if size else None
        elif marker not in PLAIN_MARKERS or length < 2:
            return None
        place += 2 + length
    return None


def cut_short(kind: str, data: bytes) -> bool:
    if kind == "WEBP":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    return kind in ENDINGS and not data.endswith(ENDINGS[kind]) and data.find(ENDINGS[kind], data.rfind(PIXELS[kind])) < 0


def check_pair(hr: Found, lr: Found, scale: int, exact: bool) -> None:
    """The sides must be `scale` apart; where both will be resized, it is enough that their shapes agree to a pixel or 2 %."""
    sizes = f"HR {hr.width} x {hr.height}, LR {lr.width} x {lr.height}"
    if exact and (hr.width, hr.height) != (lr.width * scale, lr.height * scale):
        raise Rejected(f"the pair is not {scale} times apart: {sizes}")
    if abs(hr.height / hr.width * lr.width - lr.height) > max(1, 0.02 * lr.height):
        raise Rejected(f"the pair has two shapes: {sizes}")


def kept(image: Found) -> Picture:
    if image.change:
        return encoded(pixels(image), "png")
    return Picture(image.data, FORMATS[image.kind], image.width, image.height, image.mode)


def stored_lr(image: Found) -> Picture:
    """LR members are PNG."""
    return kept(image) if image.kind == "PNG" else encoded(pixels(image), "png")


def pixels(image: Found) -> Image.Image:
    """Upright, 8 bits, RGB or grey."""
    try:
        with Image.open(io.BytesIO(image.data)) as opened:
            return eight_bits(ImageOps.exif_transpose(opened))
    except Rejected:
        raise
    except Exception as problem:  # decoders meet damaged data with errors of many kinds
        raise Rejected(f"cannot be decoded: {first_line(problem)[:120]}") from None


def eight_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        levels = np.asarray(image, np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise Rejected("its levels are not those of 16 bits")
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    return image.convert("L" if image.mode in ("L", "LA", "1") else "RGB")


def geometry(width: int, height: int, how: Preparation, grid: int) -> tuple[Box, tuple[int, int]]:
    """The part of an image that is used, and the size that it gets; where LR is stored, both lie on the grid of the scale."""
    left, top, side = 0, 0, how.centre_crop
    if side and min(width, height) < side:
        raise Rejected(f"{width} x {height} is below centre_crop {side}")
    if not side and how.resize and how.resize_mode == "crop":
        side = min(width, height)
    if side:
        left, top = ((length - side) // 2 // grid * grid for length in (width, height))
        width = height = side
    box = (left, top, left + width, top + height)
    if not how.resize:
        return box, (width, height)
    if how.resize_mode != "short":
        return box, (how.resize, how.resize)
    ratio = how.resize / min(width, height) / grid
    return box, (max(1, round(width * ratio)) * grid, max(1, round(height * ratio)) * grid)


def reshaped(image: Image.Image, box: Box, size: tuple[int, int]) -> Image.Image:
    """Pillow's bicubic with antialiasing; pixels stay as they are where no side changes."""
    if all(edge == round(edge) for edge in box):
        image, box = image.crop(box), (0, 0, box[2] - box[0], box[3] - box[1])
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC, box=box)


def tiles(width: int, height: int, how: Preparation) -> Iterator[tuple[int, int, int, int]]:
    """The boxes of the tiles; the last of a row or column ends at the border, so that every pixel is in one."""
    if not how.tile:
        yield 0, 0, width, height
        return
    if min(width, height) < how.tile:
        raise Rejected(f"{width} x {height} is below tile {how.tile}")
    for top in starts(height, how.tile, how.stride or how.tile):
        for left in starts(width, how.tile, how.stride or how.tile):
            yield left, top, left + how.tile, top + how.tile


def starts(length: int, tile: int, stride: int) -> list[int]:
    return sorted({*range(0, length - tile + 1, stride), length - tile})


def encoded(image: Image.Image, suffix: str, quality: int = 95) -> Picture:
    out = io.BytesIO()
    try:
        image.save(out, NAMES[suffix], **({} if suffix == "png" else {"quality": quality}), **LIKE_THIS.get(suffix, {}))
    except (OSError, ValueError) as problem:
        raise Rejected(f"cannot be written as {suffix}: {first_line(problem)[:120]}") from None
    return Picture(out.getvalue(), suffix, *image.size, image.mode)
