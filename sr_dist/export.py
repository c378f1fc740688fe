"""The command `python -m sr_dist.export`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from sr_dist.core import cli
from sr_dist.core.cli import Word
from sr_dist.core.config import OptionalPositive, Settings
from sr_dist.models import published
from sr_dist.models.weights_formats import check_out_file


class Export(Settings):
    """Writes a trained generator as a file that other programs read.

    The suffix of OUT chooses the format:

      .safetensors  the moving average (EMA), with metadata that names the generator and the scale
      .pth          params (the raw weights) and params_ema (the EMA), in BasicSR's names for rrdb and msrresnet
      .onnx         the EMA as a graph for images of any size, compared in onnxruntime before it is written
    """

    source: Annotated[str, Word("RUN")]
    """A run folder (its newest checkpoint), a weights file, of sr_dist or of another project, or the name of a file of the
    weights folders."""
    out: Annotated[str, Word("OUT")]
    """The file to write."""
    scale: OptionalPositive = None
    """The scale of weights whose tensors do not show it (SRCNN)."""


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(Export, export, argv)


def export(options: Export) -> None:
    published.place(options.source, "RUN")
    check_out_file(options.out)

    from sr_dist.models.export import export as write  # loads torch, which the checks above do without

    print(write(options.source, Path(options.out), options.scale))


if __name__ == "__main__":
    sys.exit(main())
