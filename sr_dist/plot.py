"""Draws the curves of one or several runs from their metrics.jsonl: losses, readings, validation, speed, gradients.

  python -m sr_dist.plot RUN[,RUN ...] [--out=FOLDER]

RUN                run folders, drawn over each other; a run in progress may be drawn at any time
--out=FOLDER       default: RUN/curves, or `curves` here for several runs

Writes losses.png, readings.png (what is measured beside the losses, such as what a classifier sees), validation.png, speed.png
and gradients.png, as far as there is anything to draw, and curves.html: one page with everything in it, where runs can be
shown and hidden, that needs no network.
"""

from __future__ import annotations

import sys

from sr_dist import commands
from sr_dist.core import cli


def main(words: cli.Words, options: cli.Options) -> None:
    (runs,) = cli.only(words, "RUN")
    chosen = commands.asked(commands.Plotting, options, runs=runs)
    chosen.check()

    from sr_dist.tools.plot import plot  # matplotlib from here on

    plot(chosen)


if __name__ == "__main__":
    sys.exit(cli.run(main))
