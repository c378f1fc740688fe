"""The command `python -m sr_dist.prove`."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from sr_dist.core import cli, launch_env
from sr_dist.core.cli import Overrides, Word
from sr_dist.core.config import Names, Settings
from sr_dist.core.errors import UserError, nearest

BACKENDS = ("ddp", "zero1", "zero2", "zero3")


class Prove(Settings):
    """Proves that a recipe trains the same on every backend: one process, DDP, ZeRO 1 to 3, accumulation, continuing.

    Four steps are trained under every launch, on the CPU, and compared; mistakes that a training loop could have are planted
    beside them, and each must be seen. Networks, losses and the objective are those of the recipe, also your own
    (--generator.name=mine.net). It starts the launcher itself.

    Exit codes: 0 every step is the same, 1 one is not or a planted fault was not seen, 2 a mistake in the command.
    """

    recipe: Annotated[str, Word("RECIPE")]
    """A recipe file, or the name of a shipped one."""
    backends: Names = BACKENDS
    """Which to compare with one process."""
    ranks: Annotated[int, Field(ge=2, le=16)] = 2
    """Ranks of each launch."""
    limit: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    """The largest difference that counts as rounding."""
    out: str | None = None
    """A folder for run folders, logs and prove.json; without it they are removed at the end."""
    overrides: Annotated[dict[str, str], Overrides()] = {}
    """Override keys of the recipe. Without --data.train the images are made. Crops are small (--data.crop), the batch is odd
    (--data.batch), and there are four steps (--steps)."""


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(Prove, prove, argv)


def prove(options: Prove) -> int:
    check(options)

    from sr_dist.tools.prove import Request, prove  # loads torch, which the checks above do without

    def work(folder: str) -> int:
        fixed = options.recipe, options.overrides, tuple(dict.fromkeys(options.backends)), options.ranks, options.limit
        return prove(Request(*fixed, Path(folder).absolute()))

    if options.out:
        return work(options.out)
    with tempfile.TemporaryDirectory(prefix="sr_dist-prove-") as folder:
        return work(folder)


def check(options: Prove) -> None:
    if launch_env.num_ranks() > 1 or launch_env.under_launcher():
        raise UserError("prove starts its launches itself; give the command without accelerate launch")
    if not options.backends:
        raise UserError(f"backends: none are named; choose from {', '.join(BACKENDS)}")
    for backend in options.backends:
        if backend not in BACKENDS:
            raise UserError(f"backends: no backend '{backend}'{nearest(backend, BACKENDS)}; choose from {', '.join(BACKENDS)}")
    if options.out and Path(options.out).exists() and any(Path(options.out).iterdir()):
        raise UserError(f"out: '{options.out}' is not empty; name another folder")


if __name__ == "__main__":
    sys.exit(main())
