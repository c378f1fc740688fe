"""Enlarges pictures with a trained network: one file, or a folder and what is below it.

    python -m sr_dist.upscale RUN_OR_WEIGHTS INPUT OUTPUT [--option=value ...]

  RUN_OR_WEIGHTS     a run folder (its newest EMA) or a weights file, of ours or of others
  INPUT, OUTPUT      a picture and a picture, or a folder and a folder; any size
  --tile=256         enlarge in tiles of so many pixels (of INPUT), for pictures that do not fit into memory
  --overlap=32       pixels that a tile sees beyond its own; results equal those without tiles for networks that look no
                     further than half of it, and are blended over its width for others
  --format=png       of the pictures in a folder: png (default), jpg, webp, tif
  --overwrite        replace pictures that are there; without it they are an error before anything is done
  --scale=N          for weights whose tensors do not show it (SRCNN's)

Grey stays grey, 16-bit PNG stays 16-bit, colour profiles are kept, EXIF rotation is applied. An alpha channel is enlarged by
bicubic interpolation. Pictures that cannot be read are listed and the others done; the exit code is then 1.
"""

from __future__ import annotations

import sys

from sr_dist.commands import Upscaling, asked
from sr_dist.core import cli


def main(words: cli.Words, options: cli.Options) -> None:
    source, given, output = cli.only(words, "RUN_OR_WEIGHTS", "INPUT", "OUTPUT")
    chosen = asked(Upscaling, options, source=source, input=given, output=output)
    chosen.check()

    from sr_dist.models.upscaling import upscale  # torch from here on

    if not upscale(chosen):
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(cli.run(main))
