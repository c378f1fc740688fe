"""Contact sheets: rows of images with headings, such as LR | bicubic | SR | HR."""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sr_dist.core.files import write_whole

GAP = 4
PAPER, INK = (250, 250, 248), (40, 40, 40)


def to_pil(image: Tensor) -> Image.Image:
    """(C, H, W) in [0, 1], one or three channels."""
    array = (image.detach().float().clamp(0, 1) * 255).round().byte().cpu().permute(1, 2, 0).numpy()
    return Image.fromarray(np.repeat(array, 3, 2) if array.shape[2] == 1 else array)


def png(image: Image.Image) -> bytes:
    """With runs alone, which finds nearly all that zlib finds in photographs, in a quarter of the time."""
    out = io.BytesIO()
    image.save(out, format="PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return out.getvalue()


def contact_sheet(rows: Sequence[Mapping[str, Image.Image]], path: Path) -> None:
    """Writes a PNG into an existing folder, with one row per mapping. The names of the first row are the headings."""
    heading = 18
    cell_width = max(image.width for row in rows for image in row.values())
    heights = [max(image.height for image in row.values()) for row in rows]
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (columns * (cell_width + GAP) + GAP, heading + sum(heights) + GAP * len(rows)), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for column, name in enumerate(rows[0]):
        draw.text((GAP + column * (cell_width + GAP), 3), name, INK, font)
    top = heading
    for row, height in zip(rows, heights, strict=True):
        for column, image in enumerate(row.values()):
            sheet.paste(image, (GAP + column * (cell_width + GAP), top))
        top += height + GAP
    save_png(sheet, path)


def save_png(image: Image.Image, path: Path) -> None:
    write_whole(path, png(image))


def enlarge(image: Image.Image, factor: int) -> Image.Image:
    """Repeats every pixel, so that LR is shown beside HR at the same size."""
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
