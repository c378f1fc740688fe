"""The command `python -m sr_dist.replay`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from sr_dist.core import cli, launch_env
from sr_dist.core.cli import Overrides, Word
from sr_dist.core.config import Names, Positive, Settings
from sr_dist.core.errors import UserError, nearest
from sr_dist.core.files import check_exists
from sr_dist.core.run_layout import METRICS, RECIPE, REPLAY
from sr_dist.data import data_checks

PROBES = ("gradients", "logits", "worst")
FOLDER = "a replay works in a folder of its own; say --out=FOLDER"
NOT_CHANGED = {"name": FOLDER, "runs": FOLDER, "log.wandb": "a replay is not reported to W&B; leave it out"}


class Replay(Settings):
    """Runs steps of a run again, from the newest checkpoint before them, and compares every logged number with metrics.jsonl.

    Under the run's launcher: accelerate launch [--config_file launch/accelerate/X.yaml] -m sr_dist.replay RUN --from=A --to=B

    The run itself does not change: a copy of the checkpoint is continued in a folder of its own. Times and memory are not
    compared. With another number of ranks the comparison has a tolerance.

    Exit codes: 0 every number is the same, 1 one differs (the first is named), 2 a mistake in the command.
    """

    run: Annotated[str, Word("RUN")]
    """A run folder."""
    first: Annotated[Positive, Field(alias="from")]
    """The first step that is compared."""
    last: Annotated[Positive, Field(alias="to")]
    """The last one."""
    probe: Names = ()
    """Also record, without changing the steps: `gradients` (the gradient norm of every generator term in every parameter),
    `logits` (of the discriminator, for each sample), `worst` (the ten samples with the highest loss, as images)."""
    out: str | None = None
    """The folder to work in; without it RUN/replay/A-B. One of an earlier replay is replaced."""
    overrides: Annotated[dict[str, str], Overrides()] = {}
    """Override keys of the recipe that a resumption may change, such as --data.train for shards that have moved; others with
    --resume.allow."""


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(Replay, replay, argv)


def replay(options: Replay) -> int:
    launch_env.check()
    check(options)
    out = Path(options.out) if options.out else Path(options.run) / REPLAY / f"{options.first}-{options.last}"
    out = out.absolute()
    allowed = ",".join(filter(None, ("data.train", options.overrides.get("resume.allow", "").strip("[] "))))
    fixed = {"name": out.name, "runs": str(out.parent), "log.wandb": "off", "resume.allow": allowed}
    recipe = data_checks.load(Path(options.run) / RECIPE, {**options.overrides, **fixed})

    from sr_dist.tools.replay import Request, replay  # loads torch, which the checks above do without

    return replay(recipe, Request(Path(options.run), options.first, options.last, options.probe))


def check(options: Replay) -> None:
    check_exists(options.run, "RUN")
    for name in (RECIPE, METRICS):
        if not (Path(options.run) / name).is_file():
            raise UserError(f"RUN: '{options.run}' is not a run folder: it has no {name}")
    if options.first > options.last:
        raise UserError(f"to: {options.last} comes before --from={options.first}; steps are replayed in their order")
    for probe in options.probe:
        if probe not in PROBES:
            raise UserError(f"probe: no probe '{probe}'{nearest(probe, PROBES)}; choose from {', '.join(PROBES)}")
    for key, reason in NOT_CHANGED.items():
        if key in options.overrides:
            raise UserError(f"{key}: {reason}")


if __name__ == "__main__":
    sys.exit(main())
