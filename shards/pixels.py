"""An encoded image -> the images that are stored: its bytes unchanged, or cropped, resized, cut into tiles and encoded again.

An image that cannot be stored unchanged but has a clear meaning (CMYK, palette, 1 bit, BMP, TIFF, still GIF, turned by EXIF)
becomes an upright PNG of the same pixels in 8 bits, RGB or grey. Alpha is dropped, as training drops it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps
from pydantic import Field

from shards.image_header import STORED_FORMATS, Rejected, SourceImage, inspect_image
from shards.restarts import marked
from sr_dist.core.config import Absent, OptionalPositive, Positive, Settings
from sr_dist.core.errors import UserError, first_line
from sr_dist.core.pixels import FORMATS, MAX_PIXELS

PILLOW_FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
# Restart markers let training decode only the rows of its crop. They cost some bytes in a thousand.
SAVE_OPTIONS: dict[str, dict[str, Any]] = {"jpg": {"restart_marker_rows": 1}}

Box = tuple[float, float, float, float]  # left, top, right, bottom


class Preparation(Settings):
    """How an input becomes the images that are stored. The steps are done in the order of the fields."""

    keep: bool = False
    """Store the bytes of every image unchanged; an error together with centre_crop, resize, tile, format or restarts."""
    max_pixels: Annotated[int, Field(gt=0, le=MAX_PIXELS)] = MAX_PIXELS
    """Images with more pixels are rejected by their header, before they are decoded; training reads none above the default."""
    min_side: Positive = 1
    """Images with a shorter side are rejected."""
    centre_crop: OptionalPositive = None
    """Take the N x N pixels in the middle."""
    resize: OptionalPositive = None
    """Resize to N pixels, with Pillow's bicubic filter."""
    resize_mode: Literal["short", "squash", "crop"] = "short"
    """With --resize: the shorter side becomes N (short), N x N (squash), or the middle square becomes N x N (crop)."""
    tile: OptionalPositive = None
    """Cut into tiles of N x N; sample_photos has a `tile` of its own."""
    stride: OptionalPositive = None
    """With --tile: the distance from tile to tile; the size of a tile where it is not given."""
    format: Annotated[Literal["jpg", "png", "webp"] | None, Absent] = None
    """Encode as this format; where it is not given, images that change become JPEG from JPEG and PNG from all others."""
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    """The quality of JPEG and WebP."""
    restarts: bool = False
    """Put restart markers into JPEGs whose bytes are stored, without loss, by jpegtran: training then decodes only the rows of
    its crop. Pixels and metadata stay; a JPEG for which that fails stays as it is, and the build says how many and why."""

    @property
    def rewrites(self) -> bool:
        return bool(self.centre_crop or self.resize or self.tile or self.format)

    def check(self, scale: int | None) -> None:
        """Refuses options that contradict each other, and sides that are not multiples of the scale of stored LR."""
        if self.keep and self.rewrites:
            raise UserError("keep: stores the bytes unchanged, but centre_crop, resize, tile and format change them")
        if self.keep and self.restarts:
            raise UserError("keep: stores the bytes unchanged, but restarts writes JPEGs anew, with the same pixels")
        if self.restarts and self.rewrites:
            raise UserError(
                "restarts: is for JPEGs whose bytes are stored; centre_crop, resize, tile and format write their own markers"
            )
        if self.stride and not self.tile:
            raise UserError("stride: is the distance from tile to tile; give --tile=PIXELS too")
        if "resize_mode" in self.model_fields_set and not self.resize:
            raise UserError("resize_mode: needs --resize=PIXELS")
        if "quality" in self.model_fields_set and (not self.rewrites or self.format == "png"):
            raise UserError("quality: applies to JPEG and WebP that are encoded again; give --format=jpg or webp too")
        for name in ("centre_crop", "resize", "tile", "stride"):
            side = getattr(self, name)
            if side and side % (scale or 1):
                raise UserError(f"{name}: {side} is not a multiple of scale {scale}")


class EncodedImage(NamedTuple):
    """An image as a member of a tar."""

    data: bytes
    suffix: str
    width: int
    height: int
    mode: str


class PreparedSample(NamedTuple):
    """A sample: a whole input, or one tile of it."""

    key_suffix: str  # the place of a tile, to be appended to the key of the input
    hr: EncodedImage
    lr: EncodedImage | None
    conversion: str | None = None  # why the bytes of HR could not be stored unchanged
    restarts: str | None = None  # whether a JPEG got restart markers, or why not, as `shards.restarts` calls it


def prepare(hr_data: bytes, lr_data: bytes | None, preparation: Preparation, scale: int = 1) -> Iterator[PreparedSample]:
    """The samples of one input. The LR image of a pair is cropped, resized and cut like its HR, `scale` times smaller."""
    hr, lr = inspect_image(hr_data, preparation.max_pixels, preparation.min_side), None
    if lr_data is not None:
        with rejection_of_lr():
            lr = inspect_image(lr_data, preparation.max_pixels)
        check_pair(hr, lr, scale, exact=not preparation.resize)
    if preparation.rewrites:
        yield from rewrite(hr, lr, preparation, scale)
    else:
        outcome = None
        if preparation.restarts and not hr.conversion and STORED_FORMATS[hr.kind] == "jpg":
            data, outcome = marked(hr)
            hr = replace(hr, data=data)
        yield PreparedSample("", stored(hr), stored_lr(lr) if lr else None, hr.conversion, outcome)


def rewrite(hr: SourceImage, lr: SourceImage | None, preparation: Preparation, scale: int) -> Iterator[PreparedSample]:
    box, (width, height) = geometry(hr.width, hr.height, preparation, scale)
    hr_pixels, lr_pixels = reshape(decode(hr), box, (width, height)), None
    if lr:
        lr_box = scaled(box, lr.width / hr.width, lr.height / hr.height)
        with rejection_of_lr():
            lr_pixels = decode(lr)
        lr_pixels = reshape(lr_pixels, lr_box, (width // scale, height // scale))
    suffix = preparation.format or ("jpg" if STORED_FORMATS.get(hr.kind) == "jpg" else "png")
    for tile in tiles(width, height, preparation):
        lr_tile = encode(lr_pixels.crop(scaled(tile, 1 / scale, 1 / scale)), "png") if lr_pixels else None
        key_suffix = f"-{tile[0]:04d}-{tile[1]:04d}" if preparation.tile else ""
        yield PreparedSample(key_suffix, encode(hr_pixels.crop(tile), suffix, preparation.quality), lr_tile)


@contextmanager
def rejection_of_lr() -> Iterator[None]:
    """Marks a rejection as one of the LR image."""
    try:
        yield
    except Rejected as rejection:
        rejection.of_lr = True
        raise


def check_pair(hr: SourceImage, lr: SourceImage, scale: int, exact: bool) -> None:
    """The sides must be `scale` apart. If both are resized later, shapes that agree to a pixel or 2 % are enough."""
    sizes = f"HR {hr.width} x {hr.height}, LR {lr.width} x {lr.height}"
    if exact and (hr.width, hr.height) != (lr.width * scale, lr.height * scale):
        raise Rejected(f"the pair is not {scale} times apart: {sizes}")
    if abs(hr.height / hr.width * lr.width - lr.height) > max(1, 0.02 * lr.height):
        raise Rejected(f"the pair has two shapes: {sizes}")


def stored(image: SourceImage) -> EncodedImage:
    """The image with its own bytes if possible, else as PNG."""
    if image.conversion:
        return encode(decode(image), "png")
    return EncodedImage(image.data, STORED_FORMATS[image.kind], image.width, image.height, image.mode)


def stored_lr(image: SourceImage) -> EncodedImage:
    """LR members are PNG."""
    with rejection_of_lr():
        return stored(image) if image.kind == "PNG" else encode(decode(image), "png")


def decode(image: SourceImage) -> Image.Image:
    """Upright, 8 bits, RGB or grey."""
    try:
        with Image.open(io.BytesIO(image.data), formats=FORMATS) as file:
            return eight_bits(ImageOps.exif_transpose(file))
    except Rejected:
        raise
    except Exception as problem:  # damaged data make decoders raise errors of many types
        raise Rejected(f"cannot be decoded: {first_line(problem)[:120]}") from None


def eight_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        levels = np.asarray(image, np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise Rejected("its levels are not those of 16 bits")
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    return image.convert("L" if image.mode in ("L", "LA", "1") else "RGB")


def encode(image: Image.Image, suffix: str, quality: int = 95) -> EncodedImage:
    file = io.BytesIO()
    options = {**({} if suffix == "png" else {"quality": quality}), **SAVE_OPTIONS.get(suffix, {})}
    try:
        image.save(file, PILLOW_FORMATS[suffix], **options)
    except (OSError, ValueError) as problem:
        raise Rejected(f"cannot be written as {suffix}: {first_line(problem)[:120]}") from None
    return EncodedImage(file.getvalue(), suffix, *image.size, image.mode)


# ----------------------------------------------------------------------------------------------------- crops, sizes, tiles


def geometry(width: int, height: int, preparation: Preparation, grid: int) -> tuple[Box, tuple[int, int]]:
    """The box of an image that is used, and the size that it gets. Both lie on `grid`, the scale of stored LR."""
    left, top, side = 0, 0, preparation.centre_crop
    if side and min(width, height) < side:
        raise Rejected(f"{width} x {height} is below centre_crop {side}")
    if not side and preparation.resize and preparation.resize_mode == "crop":
        side = min(width, height)
    if side:
        left, top = ((length - side) // 2 // grid * grid for length in (width, height))
        width = height = side
    box = (left, top, left + width, top + height)
    if not preparation.resize:
        return box, (width, height)
    if preparation.resize_mode != "short":
        return box, (preparation.resize, preparation.resize)
    ratio = preparation.resize / min(width, height) / grid
    return box, (max(1, round(width * ratio)) * grid, max(1, round(height * ratio)) * grid)


def reshape(image: Image.Image, box: Box, size: tuple[int, int]) -> Image.Image:
    """Crops, and resizes with Pillow's antialiased bicubic filter if the size changes."""
    if all(edge == round(edge) for edge in box):
        image, box = image.crop(box), (0, 0, box[2] - box[0], box[3] - box[1])
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC, box=box)


def scaled(box: Box, across: float, down: float) -> Box:
    return box[0] * across, box[1] * down, box[2] * across, box[3] * down


def tiles(width: int, height: int, preparation: Preparation) -> Iterator[tuple[int, int, int, int]]:
    """The boxes of the tiles. The last of a row or column ends at the border, so every pixel is in a tile."""
    if not preparation.tile:
        yield 0, 0, width, height
        return
    if min(width, height) < preparation.tile:
        raise Rejected(f"{width} x {height} is below tile {preparation.tile}")
    stride = preparation.stride or preparation.tile
    for top in tile_starts(height, preparation.tile, stride):
        for left in tile_starts(width, preparation.tile, stride):
            yield left, top, left + preparation.tile, top + preparation.tile


def tile_starts(length: int, tile: int, stride: int) -> list[int]:
    return sorted({*range(0, length - tile + 1, stride), length - tile})
