"""The command `python -m sr_dist.interpolate`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from sr_dist.core import cli
from sr_dist.core.cli import Word
from sr_dist.core.config import Fraction, OptionalPositive, Settings
from sr_dist.models import published
from sr_dist.models.weights_formats import check_out_file


class Interpolate(Settings):
    """Writes the interpolation of two networks: (1 - alpha) A + alpha B for every tensor, as in ESRGAN."""

    a: Annotated[str, Word("A")]
    """A run folder (its newest EMA), a weights file, or the name of a file of the weights folders."""
    b: Annotated[str, Word("B")]
    """The same for another network of the same generator with the same options."""
    out: Annotated[str, Word("OUT")]
    """A .safetensors, .pth or .onnx file."""
    alpha: Fraction
    """The weight of B, from 0 to 1."""
    overwrite: bool = False
    """Replace an existing file. Without it one with other content is an error."""
    scale: OptionalPositive = None
    """The scale of weights whose tensors do not show it (SRCNN)."""


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(Interpolate, interpolate, argv)


def interpolate(options: Interpolate) -> None:
    published.place(options.a, "A")
    published.place(options.b, "B")
    check_out_file(options.out)

    from sr_dist.models.interpolate import interpolate as write  # loads torch, which the checks above do without

    print(write(options.a, options.b, Path(options.out), options.alpha, options.scale, options.overwrite))


if __name__ == "__main__":
    sys.exit(main())
