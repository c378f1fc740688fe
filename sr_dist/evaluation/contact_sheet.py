"""Pictures for people: rows of LR | bicubic | SR | HR with a line of words above."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

GAP = 4
PAPER, INK = (250, 250, 248), (40, 40, 40)


def to_pil(image: Tensor) -> Image.Image:
    """(C, H, W) in [0, 1], one or three channels."""
    array = (image.detach().float().clamp(0, 1) * 255).round().byte().cpu().permute(1, 2, 0).numpy()
    return Image.fromarray(np.repeat(array, 3, 2) if array.shape[2] == 1 else array)


def contact_sheet(rows: Sequence[Mapping[str, Image.Image]], path: Path) -> None:
    """Writes a picture with one row per mapping and the first row's names as headings."""
    heading = 18
    cell_width = max(image.width for row in rows for image in row.values())
    heights = [max(image.height for image in row.values()) for row in rows]
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (columns * (cell_width + GAP) + GAP, heading + sum(heights) + GAP * len(rows)), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for column, name in enumerate(rows[0]):
        pen.text((GAP + column * (cell_width + GAP), 3), name, INK, font)
    top = heading
    for row, height in zip(rows, heights, strict=True):
        for column, image in enumerate(row.values()):
            sheet.paste(image, (GAP + column * (cell_width + GAP), top))
        top += height + GAP
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}")
    sheet.save(aside, format="PNG")
    aside.replace(path)


def enlarged(image: Image.Image, factor: int) -> Image.Image:
    """Every pixel as a square, so that LR stands beside HR at the same size."""
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
