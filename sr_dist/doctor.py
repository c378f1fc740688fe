"""The command `python -m sr_dist.doctor`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from sr_dist.core import cli
from sr_dist.core.config import Settings
from sr_dist.core.errors import UserError
from sr_dist.tools.doctor import examine


class Doctor(Settings):
    """Reports what works on this machine, what is missing, and how to fix it.

    Under a launcher (accelerate launch [--config_file launch/accelerate/X.yaml] -m sr_dist.doctor) all ranks also exchange data,
    and their bandwidth is measured.

    Every check prints one line: `ok`, `missing` (only some recipes or machines need it) or `BROKEN` (nothing trains without
    it). Nothing is downloaded, and no network is needed. Exit codes: 0 if nothing is broken, else 1.
    """

    runs: str = "runs"
    """The folder of run folders. The speed of its disk is measured."""


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(Doctor, doctor, argv)


def doctor(options: Doctor) -> int:
    if Path(options.runs).exists() and not Path(options.runs).is_dir():
        raise UserError(f"runs: '{options.runs}' is a file; run folders need a folder")
    return examine(Path(options.runs))


if __name__ == "__main__":
    sys.exit(main())
