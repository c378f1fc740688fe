"""Writes the network between two: (1 - alpha) A + alpha B for every tensor, as ESRGAN does with its PSNR and GAN stages.

  python -m sr_dist.interpolate A B OUT --alpha=0.8 [--scale=N]

A, B               run folders (their newest EMA) or weights files of one generator with the same options
OUT                .safetensors, .pth or .onnx
--alpha=0.8        from 0 (A) to 1 (B)
--scale=N          for weights whose tensors do not show it (SRCNN's)
"""

from __future__ import annotations

import sys

from sr_dist.commands import Interpolating, asked
from sr_dist.core import cli


def main(words: cli.Words, options: cli.Options) -> None:
    a, b, out = cli.only(words, "A", "B", "OUT")
    chosen = asked(Interpolating, options, a=a, b=b, out=out)
    chosen.check()

    from sr_dist.models.interpolate import interpolate  # torch from here on

    print(interpolate(chosen))


if __name__ == "__main__":
    sys.exit(cli.run(main))
