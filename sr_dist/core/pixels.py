"""The formats and the most pixels of images, when shards are built and when images are read, and how one is opened."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from PIL import Image, ImageFile, UnidentifiedImageError

from sr_dist.core.errors import first_line

MAX_PIXELS = 200_000_000
# Of all of Pillow's formats, whatever a file is called: reading an EPS runs Ghostscript, so a program, on it.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")


@contextmanager
def without_pillows_limit() -> Iterator[None]:
    """Pillow's own limits, a warning and an error at other sizes, are replaced by ours."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def open_image(file: Path | IO[bytes]) -> ImageFile.ImageFile:
    """An image whose header was read."""
    try:
        with without_pillows_limit():
            image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        if isinstance(file, Path):
            raise
        text = "it is no image of a known format" if file.seek(0, os.SEEK_END) else "it is empty (0 bytes)"
        raise UnidentifiedImageError(text) from None  # Pillow's message has the address of an object
    try:
        check_pixels(*image.size)
    except Image.DecompressionBombError:
        image.close()
        raise
    return image


def reading_problem(problem: BaseException, file: Path | None = None) -> str:
    """What is wrong with an image, in words for the owner of the file. Decoders have words of their own for it."""
    with suppress(OSError):
        if file and not file.stat().st_size:
            return "it is empty (0 bytes)"
    text = first_line(problem)
    return f"its data are cut short ({text})" if "truncated" in text.lower() else text


def check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{width} x {height} is more than {MAX_PIXELS} pixels")
