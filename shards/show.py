"""A contact sheet of some samples with their labels, and a summary of what the shards hold.

    python -m shards.show OUT [--num=16] [--picture=FILE.png]

The picture is OUT/contact_sheet.png unless --picture says otherwise. Samples are spread evenly over the shards.
"""

from __future__ import annotations

import io
import sys
import zlib
from collections import Counter
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pydantic import Field

from sr_dist import config, door
from sr_dist.config import Settings
from sr_dist.data.format import MODES, Index, ShardError, Shards, open_shards
from sr_dist.errors import UserError, first_line

LARGEST, WORDS = 160, 16  # pixels of a cell's picture, and of the line below it


class Show(Settings):
    num: Annotated[int, Field(gt=0)] = 16
    picture: str | None = None


def main(words: door.Words, options: door.Options) -> None:
    (folder,) = door.only(words, "OUT")
    chosen = config.typed(Show, options)
    shards = open_shards(folder, "OUT")
    indexes = [shards.index(number) for number in range(len(shards.paths()))]
    print(summary(shards, indexes))
    path = Path(chosen.picture or Path(shards.folder) / "contact_sheet.png")
    contact_sheet(shards, indexes, chosen.num, path)
    print(f"picture: {path}")


def summary(shards: Shards, indexes: list[Index]) -> str:
    manifest = shards.manifest
    width, height, mode, label = (
        np.concatenate([index[column] for index in indexes]) for column in ("width", "height", "mode", "class")
    )
    modes = ", ".join(f"{MODES[number]} {count}" for number, count in sorted(Counter(mode.tolist()).items()))
    lines = [
        f"{manifest.samples} samples in {len(indexes)} shards, {sum(s.bytes for s in manifest.shards) / 2**20:.1f} MiB",
        f"width {width.min()} to {width.max()}, height {height.min()} to {height.max()}, modes: {modes}",
    ]
    counts = Counter(label.tolist())
    lines += [f"  {counts.get(number, 0):>8} {name}" for number, name in enumerate(manifest.classes[:20])]
    if len(manifest.classes) > 20:
        lines.append(f"  ... {len(manifest.classes)} classes, {min(counts.values())} to {max(counts.values())} samples each")
    return "\n".join(lines)


def seen(image: Image.Image) -> Image.Image:
    """The image in 8 bits and colours, as a screen shows it."""
    if image.mode.startswith("I"):
        image = image.point(lambda level: level / 257).convert("L")
    return image.convert("RGB")


def contact_sheet(shards: Shards, indexes: list[Index], num: int, path: Path) -> None:
    places = [(shard, row) for shard, index in enumerate(indexes) for row in range(len(index))]
    chosen = [places[i] for i in np.linspace(0, len(places) - 1, min(num, len(places))).astype(int)]
    columns = min(8, max(1, int(np.ceil(np.sqrt(len(chosen))))))
    rows = -(-len(chosen) // columns)
    side = min(LARGEST, max(int(max(index["width"].max(), index["height"].max())) for index in indexes if len(index)))
    sheet = Image.new("RGB", (columns * (side + 4) + 4, rows * (side + WORDS + 4) + 4), (250, 250, 248))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for cell, (shard, row) in enumerate(chosen):
        index = indexes[shard]
        with open(shards.paths()[shard], "rb") as tar:
            tar.seek(int(index["hr_offset"][row]))
            data = tar.read(int(index["hr_bytes"][row]))
        if zlib.crc32(data) != int(index["hr_crc32"][row]):
            raise ShardError(f"'{shards.paths()[shard]}': '{index['key'][row].decode()}' does not match its checksum")
        image = seen(Image.open(io.BytesIO(data)))
        image.thumbnail((side, side))
        left, top = 4 + cell % columns * (side + 4), 4 + cell // columns * (side + WORDS + 4)
        sheet.paste(image, (left, top))
        label = int(index["class"][row])
        words = f"{shards.manifest.classes[label]}" if 0 <= label < len(shards.manifest.classes) else index["key"][row].decode()
        pen.text((left, top + side + 1), words[:26], (40, 40, 40), font)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path)
    except (OSError, ValueError) as problem:
        raise UserError(f"picture: '{path}' cannot be written: {first_line(problem)}") from None


if __name__ == "__main__":
    sys.exit(door.run(main))
