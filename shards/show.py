"""The command `python -m shards.show`."""

from __future__ import annotations

import io
import os
import sys
import zlib
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sr_dist.core import cli
from sr_dist.core.cli import Word
from sr_dist.core.config import Positive, Settings
from sr_dist.core.errors import UserError, first_line, nearest_path
from sr_dist.core.outputs import write_output
from sr_dist.core.passwords import without_passwords
from sr_dist.core.pixels import open_image
from sr_dist.core.printable import plural, printable
from sr_dist.data.format import MODES, Index, ShardError, Shards, attribute_values, open_shards

LARGEST_IMAGE, LINE_HEIGHT = 160, 16  # pixels of an image, and of the line of text below it


class Show(Settings):
    """Draws a contact sheet of some samples with their labels, and prints a summary of the shards.

    The samples are spread evenly over the shards. An image that cannot be shown leaves a gap; the exit code is then 1.
    """

    folder: Annotated[str, Word("OUT")]
    """A folder of shards."""
    num: Positive = 16
    """The number of samples."""
    picture: str | None = None
    """The image file to write; OUT/contact_sheet.png where it is not given."""


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(Show, show, argv)


def show(options: Show) -> int:
    shards = open_shards(options.folder, "OUT")
    path = Path(options.picture or Path(shards.folder) / "contact_sheet.png")
    if options.picture and os.path.lexists(path):
        raise UserError(f"picture: '{path}' exists; name a new file")
    if not path.parent.is_dir():
        raise UserError(f"picture: no folder '{path.parent}'{nearest_path(path.parent)}")
    print(summary(shards))
    problems = contact_sheet(shards, options.num, path)
    for problem in problems:
        print(printable(f"BAD {problem}"))
    print(f"picture: {path}")
    return int(bool(problems))


def columns_of(shards: Shards, *names: str) -> list[np.ndarray]:
    """Columns of all shards. They are copied, so that no more than one index is in memory at a time."""
    indexes = map(shards.index, range(len(shards.manifest.shards)))
    parts = ([np.array(index[name]) for name in names] for index in indexes)
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def summary(shards: Shards) -> str:
    manifest = shards.manifest
    width, height, mode, label, attributes = columns_of(shards, "width", "height", "mode", "class", "attributes")
    modes = ", ".join(f"{MODES[number]} {count}" for number, count in sorted(Counter(mode.tolist()).items()))
    size = sum(shard.bytes for shard in manifest.shards) / 2**20
    lines = [
        f"{plural(manifest.samples, 'sample')} in {plural(len(manifest.shards), 'shard')}, {size:.1f} MiB",
        f"width {width.min()} to {width.max()}, height {height.min()} to {height.max()}, modes: {modes}",
    ]
    if manifest.scale:
        lines.append(f"LR stored, {manifest.scale} times smaller")
    if manifest.tars:
        lines.append(f"the tars are at {manifest.tars}")
    counts = Counter(label.tolist())
    lines += [f"  {counts.get(number, 0):>8} {name}" for number, name in enumerate(manifest.classes[:20])]
    if len(manifest.classes) > 20:
        lines.append(f"  ... {len(manifest.classes)} classes, {min(counts.values())} to {max(counts.values())} samples each")
    if manifest.attributes:
        counts_with = attribute_values(attributes, len(manifest.attributes)).sum(0, dtype=np.int64)
        lines += [f"  {count:>8} with {name}" for name, count in zip(manifest.attributes, counts_with, strict=True)]
    return "\n".join(printable(without_passwords(line)) for line in lines)


def contact_sheet(shards: Shards, num: int, path: Path) -> list[str]:
    """Samples spread evenly over the shards. Stored LR is enlarged and drawn to the right of its HR. Images that cannot be shown
    leave a gap: -> what is wrong with them. If none can be shown, it is a ShardError."""
    starts = np.concatenate([[0], np.cumsum([shard.samples for shard in shards.manifest.shards])])
    cells, problems = [], []
    index_of = lru_cache(maxsize=1)(shards.index)  # samples come shard by shard
    for sample in np.linspace(0, starts[-1] - 1, min(num, int(starts[-1]))).astype(int):
        shard = int(np.searchsorted(starts, sample, side="right")) - 1
        index, row = index_of(shard), int(sample - starts[shard])
        try:
            cells.append(cell(shards, shard, index, row))
        except ShardError as problem:
            problems.append(str(problem))
            cells.append((gap(), "BAD " + index["key"][row].decode("utf-8", "replace")))
    if len(problems) == len(cells):
        raise ShardError(problems[0])
    columns = min(8, max(1, int(np.ceil(np.sqrt(len(cells))))))
    num_beside = 2 if shards.manifest.scale else 1
    height = max(max(image.width // num_beside, image.height) for image, _ in cells)
    width = height * num_beside
    sheet = Image.new(
        "RGB", (columns * (width + 4) + 4, -(-len(cells) // columns) * (height + LINE_HEIGHT + 4) + 4), (250, 250, 248)
    )  # fmt: skip
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for number, (image, text) in enumerate(cells):
        left, top = 4 + number % columns * (width + 4), 4 + number // columns * (height + LINE_HEIGHT + 4)
        sheet.paste(image, (left, top))
        pen.text((left, top + height + 1), text[:26], (40, 40, 40), font)
    try:
        file = io.BytesIO()
        sheet.save(file, Image.registered_extensions().get(path.suffix.lower()) or path.suffix)
    except (KeyError, OSError, ValueError) as problem:
        raise UserError(f"picture: '{path}' cannot be written: {first_line(problem)}") from None
    write_output(path, file.getvalue(), "picture")  # in the place of a symbolic link, and not through it
    return problems


def gap() -> Image.Image:
    """The place of an image that cannot be shown: crossed out."""
    image = Image.new("RGB", (32, 32), (225, 225, 222))
    pen = ImageDraw.Draw(image)
    for line in ((0, 0, 31, 31), (0, 31, 31, 0)):
        pen.line(line, (170, 60, 60), 2)
    return image


def cell(shards: Shards, shard: int, index: Index, row: int) -> tuple[Image.Image, str]:
    """A sample as a small image, and its class or key."""
    key, label = index["key"][row].decode("utf-8", "replace"), int(index["class"][row])
    hr, lr = (member_image(shards.path(shard), index, row, member) for member in ("hr", "lr"))
    assert hr
    hr.thumbnail((LARGEST_IMAGE, LARGEST_IMAGE))
    if lr:
        both = Image.new("RGB", (2 * hr.width, hr.height))
        both.paste(hr, (0, 0))
        both.paste(lr.resize(hr.size, Image.Resampling.NEAREST), (hr.width, 0))
        hr = both
    return hr, shards.manifest.classes[label] if 0 <= label < len(shards.manifest.classes) else key


def member_image(path: Path, index: Index, row: int, member: str) -> Image.Image | None:
    """One image of a sample in 8 bits RGB; None if it is not stored."""
    size = int(index[f"{member}_bytes"][row])
    if not size:
        return None
    try:
        with open(path, "rb") as tar:
            tar.seek(int(index[f"{member}_offset"][row]))
            data = tar.read(size)
        if zlib.crc32(data) != int(index[f"{member}_crc32"][row]):
            raise ShardError("its bytes do not match their checksum")
        image: Image.Image = open_image(io.BytesIO(data))
        if image.mode.startswith("I"):
            image = image.point(lambda level: level / 257).convert("L")
        return image.convert("RGB")
    except Exception as problem:  # damaged data make decoders raise errors of many types
        key = index["key"][row].decode("utf-8", "replace")
        raise ShardError(f"'{path}': the {member} image of '{key}' cannot be shown: {first_line(problem)}") from None


if __name__ == "__main__":
    sys.exit(main())
