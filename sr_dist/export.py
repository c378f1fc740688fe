"""The command `python -m sr_dist.export`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

from sr_dist.core import cli
from sr_dist.core.cli import Word
from sr_dist.core.config import OptionalPositive, Settings
from sr_dist.models import published
from sr_dist.models.weights_formats import check_licence, check_out_file, is_out_folder


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
    """The file to write. A folder (an existing one without a suffix in its name, or a name that ends in /) gets a .safetensors
    and its card."""
    card: bool = False
    """Also write README.md beside the file: a Hugging Face model card from what the run folder knows. A folder always has it."""
    license: str = "unknown"
    """The licence that the card states, such as apache-2.0."""
    overwrite: bool = False
    """Replace existing files. Without it one with other content is an error."""
    scale: OptionalPositive = None
    """The scale of weights whose tensors do not show it (SRCNN)."""


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(Export, export, argv)


def export(options: Export) -> None:
    published.place(options.source, "RUN")
    if not is_out_folder(options.out):
        check_out_file(options.out)
    check_licence(options.license)

    from sr_dist.models.export import Request  # loads torch, which the checks above do without
    from sr_dist.models.export import export as write

    request = Request(options.card, options.license, options.overwrite)
    print("\n".join(write(options.source, options.out, options.scale, request)))


if __name__ == "__main__":
    sys.exit(main())
