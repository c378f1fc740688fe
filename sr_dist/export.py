"""Writes a trained generator as a file that other programs read.

  python -m sr_dist.export RUN OUT [--scale=N]

RUN                a run folder (its newest checkpoint) or a weights file, of ours or of others
OUT                its suffix chooses the form:
                   .safetensors  the moving average (EMA), with metadata that says the generator and the scale
                   .pth          params (the raw weights) and params_ema (the EMA), in BasicSR's names for rrdb and msrresnet
                   .onnx         the EMA as a graph for images of any size, compared in onnxruntime before it is written
--scale=N          for weights whose tensors do not show it (SRCNN's)
"""

from __future__ import annotations

import sys

from sr_dist.commands import Exporting, asked
from sr_dist.core import cli


def main(words: cli.Words, options: cli.Options) -> None:
    source, out = cli.only(words, "RUN", "OUT")
    chosen = asked(Exporting, options, source=source, out=out)
    chosen.check()

    from sr_dist.models.export import export  # torch from here on

    print(export(chosen))


if __name__ == "__main__":
    sys.exit(cli.run(main))
