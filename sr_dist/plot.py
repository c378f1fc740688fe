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
from sr_dist.core.files import check_exists, same_place_twice
from sr_dist.core.run_layout import METRICS


class Plot(Settings):
    """Draws the curves of one or several runs from their metrics.jsonl: losses, readings, validation, speed, gradients.

    Writes losses.png, readings.png (measurements beside the losses, such as a classifier's answers), validation.png, speed.png
    and gradients.png, each only if the runs have such columns. Also writes curves.html, one page with all curves, on which runs
    can be hidden. The page needs no network.
    """

    runs: Annotated[Names, Word("RUN[,RUN]")]
    """Run folders. Several runs share the same axes. A run in progress can be drawn at any time."""
    out: str | None = None
    """The folder to write to; without it RUN/curves, or `curves` in the current folder for several runs."""


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(Plot, plot, argv)


def plot(options: Plot) -> None:
    check(options)

    from sr_dist.tools.plot import plot_runs  # loads matplotlib, which the checks above do without

    plot_runs(options.runs, folder(options))


def check(options: Plot) -> None:
    if not options.runs:
        raise UserError("RUN: name a run folder, or several separated by commas")
    if same_place_twice(options.runs):
        raise UserError(f"RUN: '{','.join(options.runs)}' names a run twice")
    for run in options.runs:
        check_exists(run, "RUN")
        record = Path(run) / METRICS
        if not record.is_file():
            raise UserError(f"RUN: '{run}' is not a run folder: it has no metrics.jsonl")
        try:
            with open(record, "rb") as file:
                has_rows = any(line.strip() for line in file)  # reads to the first row
        except OSError as problem:
            raise UserError(f"RUN: '{record}' cannot be read: {problem.strerror}") from None
        if not has_rows:
            raise UserError(f"RUN: '{run}' has no rows yet; the first one is written at step log_every of its recipe")
    if options.out and Path(options.out).exists() and not Path(options.out).is_dir():
        raise UserError(f"out: '{options.out}' is a file; the curves need a folder")


def folder(options: Plot) -> Path:
    """The curves of one run go into its own folder; those of several runs belong to none of them."""
    if options.out:
        return Path(options.out)
    return Path(options.runs[0]) / "curves" if len(options.runs) == 1 else Path("curves")


if __name__ == "__main__":
    sys.exit(main())
