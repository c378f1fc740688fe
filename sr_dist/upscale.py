"""The command `python -m sr_dist.upscale`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from sr_dist.core import cli
from sr_dist.core.cli import Word
from sr_dist.core.config import Absent, OptionalPositive, Settings
from sr_dist.core.errors import UserError
from sr_dist.core.files import IMAGE_SUFFIXES, SHORT_SUFFIXES, check_exists
from sr_dist.core.outputs import is_folder
from sr_dist.models import published

SOURCE = "RUN_OR_WEIGHTS"


def _parse_tile(value: Any) -> Any:
    """`auto`, a number, or none."""
    if isinstance(value, str) and value.strip().lower() == "auto":
        return "auto"
    if value is None or (isinstance(value, str) and value.strip().lower() in ("none", "null")):
        return None
    if not str(value).strip().isdecimal() or not int(value):
        raise ValueError(f"'{value}' is no number of pixels; it may also be auto or none")
    return int(value)


class Upscale(Settings):
    """Enlarges images with a trained network: one file, a folder and everything below it, or a pattern such as 'in/*.png'.

    Grey stays grey, 16-bit PNG stays 16-bit, colour profiles and EXIF are preserved, EXIF rotation is applied. An alpha channel
    is enlarged by bicubic interpolation. JPEG, PNG, WebP, TIFF and BMP are read and written. Images that cannot be read, and
    moving ones, are listed, and the exit code is then 1. The same command continues one that was interrupted. Under a launcher
    the ranks share the images: accelerate launch -m sr_dist.upscale ...
    """

    source: Annotated[str, Word(SOURCE)]
    """A run folder (its newest EMA), a weights file of sr_dist or of another project, or the name of a file of the weights
    folders."""
    input: Annotated[str, Word("INPUT")]
    """An image, a folder of images of any size, or a quoted pattern; ** in it stands for any folders."""
    output: Annotated[str, Word("OUTPUT")]
    """An image or a folder for an image, else a folder."""
    tile: Annotated[int | Literal["auto"] | None, BeforeValidator(_parse_tile)] = "auto"
    """Enlarge in tiles with this side in pixels of INPUT. auto: only images that do not fit into the free memory; none: never.
    Where memory does not suffice, tiles become smaller."""
    overlap: Annotated[int, Field(ge=0, le=65536)] = 32
    """Pixels that a tile sees beyond its own on each side. Results equal those without tiles if the network's receptive field
    reaches no further than half of it; otherwise tiles are blended over its width."""
    outscale: Annotated[Annotated[float, Field(gt=0, le=64)] | None, Absent] = None
    """The scale of the results, such as 3 or 1.5; the network's images are resized to it by bicubic interpolation."""
    suffix: str = ""
    """Added to the names of images that are written to a folder: _x4 makes a_x4.png of a.png."""
    ext: Literal["auto", "png", "jpg", "webp", "tif", "bmp"] | None = None
    """The format of images that are written to a folder; auto: that of the image; without it png."""
    format: Literal["png", "jpg", "webp", "tif"] | None = None
    """The older name of --ext."""
    half: bool = False
    """Compute in 16 bits: fp16 on a GPU, bf16 on the CPU. Faster on GPUs, with less memory; pixels differ a little."""
    overwrite: bool = False
    """Replace existing images. Without it, those of a folder are skipped, and a named one is an error."""
    scale: OptionalPositive = None
    """The scale of weights whose tensors do not show it (SRCNN)."""

    @model_validator(mode="after")
    def _one_name(self) -> Upscale:
        if self.ext and self.format and self.ext != self.format:
            raise ValueError(f"ext: {self.ext}, but format: {self.format}, which is its older name; leave one of them out")
        if "/" in self.suffix or "\0" in self.suffix:
            raise ValueError(f"suffix: '{self.suffix}' cannot be a part of a file's name")
        return self

    @property
    def extension(self) -> str | None:
        return self.ext or self.format


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(Upscale, upscale, argv)


def upscale(options: Upscale) -> int:
    check(options)

    from sr_dist.core import ranks  # loads torch, which the checks above do without
    from sr_dist.models import trained, upscaler, upscaling

    ranks.open_group()
    weights = ranks.from_first(lambda: trained.locate(options.source, SOURCE))
    network = upscaler.load(weights, tile=options.tile, half=options.half, scale=options.scale, key=SOURCE)
    network = replace(network, overlap=options.overlap, outscale=options.outscale)
    naming = upscaling.Naming(options.extension or "png", options.suffix)
    work = upscaling.plan(options.input, options.output, naming, options.overwrite)
    if options.outscale and options.outscale < 1 and ranks.is_first():
        print(f"note: outscale: {options.outscale:g} is below 1, so the results are smaller than the images", flush=True)
    done, failed = upscaling.upscale(network, work.pairs)
    if ranks.is_first():
        skipped = f"; {work.existing} exist and were skipped, --overwrite replaces them" if work.existing else ""
        by = f"{options.outscale or network.scale:g}"
        print(f"{done} of {len(work.pairs)} images enlarged by {by} with {network.name}: {options.output}{skipped}")
    ranks.destroy_group()
    return int(failed > 0)


def check(options: Upscale) -> None:
    published.place(options.source, SOURCE)
    source, out = Path(options.input), Path(options.output)
    if not source.exists() and not any(sign in options.input for sign in "*?["):
        check_exists(options.input, "INPUT")
    suffix = SHORT_SUFFIXES.get(out.suffix.lower(), out.suffix.lower())
    if not source.is_file():
        if out.exists() and not out.is_dir():
            raise UserError(
                f"OUTPUT: '{out}' is a file, but INPUT is {'a folder' if source.is_dir() else 'a pattern'}; name a folder"
            )
    elif not is_folder(options.output) and suffix not in IMAGE_SUFFIXES:
        raise UserError(f"OUTPUT: '{out}' has no suffix of an image ({', '.join(IMAGE_SUFFIXES)})")
    elif not is_folder(options.output) and options.extension not in (None, "auto", suffix[1:]):
        key = "format" if options.ext is None else "ext"
        raise UserError(f"{key}: {options.extension}, but OUTPUT is '{out}'; leave one of them out")


if __name__ == "__main__":
    sys.exit(main())
