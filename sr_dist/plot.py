"""The command `python -m sr_dist.plot`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from sr_dist.core import cli
from sr_dist.core.cli import Word
from sr_dist.core.config import Names, Settings
from sr_dist.core.errors import UserError
from sr_dist.core.files import exists, same_place_twice


class Plot(Settings):
    """Draws the curves of one or several runs from their metrics.jsonl: losses, readings, validation, speed, gradients.

    Writes losses.png, readings.png (what is measured beside the losses, such as a classifier's answers), validation.png,
    speed.png and gradients.png, as far as there is anything to draw, and curves.html: one page with all of it, where runs can be shown and
    hidden, and that needs no network.
    """

    runs: Annotated[Names, Word("RUN[,RUN]")]
    """Run folders, drawn over each other; a run in progress may be drawn at any time."""
    out: str | None = None
    """The folder to write to; the default is RUN/curves, or `curves` here for several runs."""


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(Plot, plot, argv)


def plot(options: Plot) -> None:
    check(options)

    from sr_dist.tools.plot import plot as draw  # loads matplotlib, which the checks above do without

    draw(options.runs, folder(options))


def check(options: Plot) -> None:
    if not options.runs:
        raise UserError("RUN: name a run folder, or several with commas between them")
    if same_place_twice(options.runs):
        raise UserError(f"RUN: '{','.join(options.runs)}' names a run twice")
    for run in options.runs:
        exists(run, "RUN")
        record = Path(run) / "metrics.jsonl"
        if not record.is_file():
            raise UserError(f"RUN: '{run}' is no run folder; it has no metrics.jsonl")
        if not record.read_text(encoding="utf-8").strip():
            raise UserError(f"RUN: '{run}' has no rows yet; the first comes with step log_every of its recipe")
    if options.out and Path(options.out).exists() and not Path(options.out).is_dir():
        raise UserError(f"out: '{options.out}' is a file; the curves need a folder")


def folder(options: Plot) -> Path:
    """The curves of one run go into its folder; those of several runs belong to none."""
    if options.out:
        return Path(options.out)
    return Path(options.runs[0]) / "curves" if len(options.runs) == 1 else Path("curves")


if __name__ == "__main__":
    sys.exit(main())
