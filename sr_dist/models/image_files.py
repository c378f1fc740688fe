"""Reads and writes image files with 8 or 16 bits, grey or colour, alpha, colour profile and EXIF."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from sr_dist.core.errors import first_line
from sr_dist.core.files import IMAGE_FORMATS as FORMATS
from sr_dist.core.pixels import open_image, reading_problem
from sr_dist.core.progress import print_line

ORIENTATION, EXIF_IFD, GPS_IFD = 0x0112, 0x8769, 0x8825
# Description, maker, model, resolution, software, date, artist, rating, copyright. In a TIFF other tags lay out its pixels.
DESCRIPTIVE = (0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x4746, 0x4749, 0x8298)
STALE = (0xA002, 0xA003, 0xA005)  # width, height, and a table of offsets, in the table of the camera
OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}, "TIFF": {"compression": "tiff_lzw"},
}  # fmt: skip

JPEG_BYTES = {"exif": 65_533, "profile": 255 * 65_519}  # one segment, and as many as their numbers count
TITLES = {"exif": "EXIF", "profile": "colour profile"}


class ImageFileError(Exception):
    """An image cannot be read, or cannot be written in the requested format."""


@dataclass(frozen=True)
class ImageFile:
    pixels: Tensor  # (1 or 3, H, W) float in [0, 1]
    alpha: Tensor | None  # (1, H, W)
    bits: int  # 8 or 16
    profile: bytes | None  # ICC
    exif: bytes | None = None  # without orientation, which was applied, and without a thumbnail


def read(path: Path) -> ImageFile:
    """The image of a file, upright. Moving images are refused: one of their frames would pass for the whole."""
    try:
        with open_image(path) as image:
            refuse_frames(image)
            exif = descriptive_exif(image)
            if image.format == "PNG" and _depth(path) == 16:
                return replace(_image_file(_png_16(path), 16, image.info.get("icc_profile")), exif=exif)
            return replace(from_pil(ImageOps.exif_transpose(image), image.info.get("icc_profile")), exif=exif)
    except ImageFileError:
        raise
    except Exception as problem:  # decoders raise many kinds of errors
        raise ImageFileError(reading_problem(problem, path)) from None


def refuse_frames(image: Image.Image) -> None:
    if (frames := getattr(image, "n_frames", 1)) > 1:
        kind = "pages" if image.format == "TIFF" else "frames"
        raise ImageFileError(f"it has {frames} {kind}, and only still images are enlarged; save each as a file of its own")


def from_pil(image: Image.Image, profile: bytes | None = None) -> ImageFile:
    """The pixels of a PIL image, as they lie."""
    profile = profile or image.info.get("icc_profile")
    if image.mode.startswith("I"):
        return _image_file(_of_16_bits(np.asarray(image, np.int32)), 16, profile)
    return _image_file(np.asarray(image.convert(_plain_mode(image))), 8, profile)


def to_pil(image: ImageFile) -> Image.Image:
    """A PIL image. PIL has 16 bits for grey without alpha only; others get 8."""
    bits = 16 if image.bits == 16 and image.alpha is None and image.pixels.shape[0] == 1 else 8
    result = _pil(_levels(image, bits))
    if image.profile:
        result.info["icc_profile"] = image.profile
    if image.exif:
        result.info["exif"] = image.exif
    return result


def descriptive_exif(image: Image.Image) -> bytes | None:
    """What EXIF says of the photograph and not of its pixels: camera, exposure, place, date, author."""
    result = Image.Exif()
    try:
        tags = image.getexif()
        result.update({tag: tags[tag] for tag in DESCRIPTIVE if tag in tags})
        for table in (EXIF_IFD, GPS_IFD):
            if values := {tag: value for tag, value in tags.get_ifd(table).items() if tag not in STALE}:
                result[table] = values
        return result.tobytes() if len(result) else None
    except Exception:  # damaged EXIF is no reason to lose the image, and raises many kinds of errors
        return None


def _of_16_bits(array: np.ndarray) -> np.ndarray:
    if array.min() < 0 or array.max() > 65535:
        raise ImageFileError("32-bit integers have no known white level")
    return array


def _plain_mode(image: Image.Image) -> str:
    """Palettes, CMYK and others become RGB; two-level images become grey."""
    if image.mode == "F":
        raise ImageFileError("floating-point images have no known white level")
    alpha = image.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in image.info
    grey = image.mode in ("1", "L", "LA", "La")
    return ("LA" if grey else "RGBA") if alpha else ("L" if grey else "RGB")


def _image_file(array: np.ndarray, bits: int, profile: bytes | None) -> ImageFile:
    """(H, W) or (H, W, 1 to 4): grey, grey and alpha, RGB, RGB and alpha."""
    planes = torch.from_numpy(array.astype(np.float32) / (2**bits - 1)).reshape(*array.shape[:2], -1).permute(2, 0, 1)
    colours = 3 if planes.shape[0] >= 3 else 1
    if profile and profile[16:20] in (b"CMYK", b"Lab "):
        profile = None  # of the stored colours, which are RGB now
    return ImageFile(planes[:colours], planes[colours:] if planes.shape[0] in (2, 4) else None, bits, profile)


def _depth(path: Path) -> int:
    with open(path, "rb") as file:
        return file.read(25)[24]


def _png_16(path: Path) -> np.ndarray:
    """Pillow reads only 8 bits of colour. torchvision reads 16, but crashes on damaged files, so Pillow checks first."""
    from torchvision.io import ImageReadMode, decode_image  # takes seconds

    with open_image(path) as image:
        image.verify()  # every chunk's checksum
    with open_image(path) as image:
        image.load()
        orientation, transparent = image.getexif().get(ORIENTATION, 1), image.info.get("transparency")
    data = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    planes = decode_image(data, ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()
    if transparent is not None and planes.shape[2] in (1, 3):  # a colour, in the chunk tRNS, which torchvision leaves out
        visible = (planes != np.array(transparent, planes.dtype)).any(2, keepdims=True)
        planes = np.concatenate([planes, visible * np.array(65535, planes.dtype)], 2)
    return _oriented(planes, orientation)


def _oriented(array: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, C) after the EXIF orientation: 2 to 4 mirror or rotate by 180 degrees, 5 to 8 swap the axes first."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return np.ascontiguousarray(array)


def fitting(image: ImageFile, target: Path) -> ImageFile:
    """Without the metadata that are too large for the format, of which a line is printed."""
    if FORMATS.get(target.suffix.lower()) != "JPEG":
        return image
    large = {name for name, most in JPEG_BYTES.items() if len(getattr(image, name) or b"") > most}
    for name in sorted(large):
        size = len(getattr(image, name))
        print_line(f"note: '{target}': its {TITLES[name]} of {size} bytes is left out: a JPEG holds {JPEG_BYTES[name]}")
    image = replace(image, exif=None) if "exif" in large else image
    return replace(image, profile=None) if "profile" in large else image


def encode(image: ImageFile, suffix: str) -> bytes:
    """The bytes of a file with this suffix. Only PNG holds 16 bits of colour; other formats get 8. JPEG and BMP hold no alpha."""
    kind = suffix.lower()
    if kind not in FORMATS:
        raise ImageFileError(f"'{suffix}' is no suffix of an image that can be written; choose from {', '.join(FORMATS)}")
    if FORMATS[kind] in ("JPEG", "BMP") and image.alpha is not None:
        raise ImageFileError(f"it has an alpha channel, which {FORMATS[kind]} does not hold; PNG, WebP and TIFF do")
    if kind == ".png" and image.bits == 16:
        return png_16(_levels(image, 16).astype(">u2"), image.profile, image.exif)
    try:
        return _encoded(_levels(image, 8), FORMATS[kind], image)
    except (OSError, ValueError) as problem:  # such as too many pixels for the format
        raise ImageFileError(first_line(problem)) from None


def _levels(image: ImageFile, bits: int) -> np.ndarray:
    """(H, W, 1 to 4) whole numbers."""
    planes = image.pixels if image.alpha is None else torch.cat([image.pixels, image.alpha])
    levels = (planes.clamp(0, 1) * (2**bits - 1) + 0.5).floor().permute(1, 2, 0).numpy()
    return levels.astype(np.uint8 if bits == 8 else np.uint16)


def _pil(array: np.ndarray) -> Image.Image:
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def _encoded(array: np.ndarray, form: str, image: ImageFile) -> bytes:
    file = io.BytesIO()
    metadata: dict[str, Any] = {"icc_profile": image.profile} if image.profile else {}
    if image.exif and form != "BMP":
        metadata["exif"] = image.exif
    options = {} if form == "TIFF" and image.exif else OPTIONS.get(form, {})  # libtiff, which compresses, has no EXIF
    _pil(array).save(file, format=form, **options, **metadata)
    return file.getvalue()


def png_16(array: np.ndarray, profile: bytes | None = None, exif: bytes | None = None) -> bytes:
    """(H, W, 1 to 4) big-endian 16 bits -> PNG, which Pillow writes for grey only. Rows are stored as differences (filter up)."""
    height, width, planes = array.shape
    rows = array.reshape(height, -1).view(np.uint8)  # (H, 2 W planes)
    above = np.vstack([np.zeros_like(rows[:1]), rows[:-1]])
    filtered = np.hstack([np.full((height, 1), 2, np.uint8), rows - above])  # 2: the filter "up"
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[planes], 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), 6)), (b"IEND", b"")]
    if profile:
        chunks.insert(1, (b"iCCP", b"ICC profile\0\0" + zlib.compress(profile)))
    if exif:
        chunks.insert(1, (b"eXIf", exif.removeprefix(b"Exif\0\0")))
    signed = (struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(signed)
