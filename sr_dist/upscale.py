"""The command `python -m sr_dist.upscale`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from sr_dist.core import cli
from sr_dist.core.cli import Word
from sr_dist.core.config import OptionalPositive, Settings
from sr_dist.core.errors import UserError
from sr_dist.core.files import check_exists

FORMATS = ("png", "jpg", "webp", "tif")


class Upscale(Settings):
    """Enlarges images with a trained network: one file, or a folder and everything below it.

    Grey stays grey, 16-bit PNG stays 16-bit, colour profiles are preserved, EXIF rotation is applied. An alpha channel is
    enlarged by bicubic interpolation. Images that cannot be read are listed, and the exit code is then 1.
    """

    source: Annotated[str, Word("RUN_OR_WEIGHTS")]
    """A run folder (its newest EMA) or a weights file, of sr_dist or of another project."""
    input: Annotated[str, Word("INPUT")]
    """An image or a folder of images of any size."""
    output: Annotated[str, Word("OUTPUT")]
    """An image for an image, a folder for a folder."""
    tile: OptionalPositive = None
    """Enlarge in tiles with this side in pixels of INPUT, for images that do not fit into memory."""
    overlap: Annotated[int, Field(ge=0, le=65536)] = 32
    """Pixels that a tile sees beyond its own on each side. Results equal those without tiles if the network's receptive field
    reaches no further than half of it; otherwise tiles are blended over its width."""
    format: Literal["png", "jpg", "webp", "tif"] | None = None
    """The format of images that are written to a folder; without it png."""
    overwrite: bool = False
    """Replace existing images. Without it they are an error, before anything is written."""
    scale: OptionalPositive = None
    """The scale of weights whose tensors do not show it (SRCNN)."""


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(Upscale, upscale, argv)


def upscale(options: Upscale) -> int:
    check(options)

    from sr_dist.models import upscaling  # loads torch, which the checks above do without

    pairs = upscaling.targets(Path(options.input), Path(options.output), options.format or "png")
    upscaling.refuse_existing(pairs, options.overwrite)
    tiles = upscaling.Tiles(options.tile, options.overlap)
    done, scale, generator = upscaling.upscale(options.source, pairs, tiles, options.scale)
    print(f"{done} of {len(pairs)} images enlarged by {scale} with {generator}: {options.output}")
    return int(done < len(pairs))


def check(options: Upscale) -> None:
    check_exists(options.source, "RUN_OR_WEIGHTS")
    check_exists(options.input, "INPUT")
    out, suffix = Path(options.output), Path(options.output).suffix.lower().replace("jpeg", "jpg")
    if Path(options.input).is_dir():
        if out.exists() and not out.is_dir():
            raise UserError(f"OUTPUT: '{out}' is a file, but INPUT is a folder; name a folder")
    elif not out.is_dir() and suffix.lstrip(".") not in FORMATS:
        raise UserError(f"OUTPUT: '{out}' has no suffix of an image ({', '.join('.' + name for name in FORMATS)})")
    elif not out.is_dir() and options.format and suffix != f".{options.format}":
        raise UserError(f"format: {options.format}, but OUTPUT is '{out}'; leave one of them out")


if __name__ == "__main__":
    sys.exit(main())
