"""The command `python -m sr_dist.fork`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from sr_dist.core import cli, launch_env
from sr_dist.core.cli import Overrides, Word
from sr_dist.core.config import Positive, Settings
from sr_dist.core.errors import UserError
from sr_dist.core.files import check_exists
from sr_dist.core.run_layout import RECIPE, checkpoint_steps
from sr_dist.data import data_checks


class Fork(Settings):
    """Begins a new run from a checkpoint of another one, with other keys, and trains it.

    Under a launcher: accelerate launch [--config_file launch/accelerate/X.yaml] -m sr_dist.fork RUN --at=STEP --name=NEW ...

    NEW is created beside RUN, which does not change. The same command continues a fork that was stopped, and so does
    sr_dist.train with the recipe.yaml of the fork. Networks, scale and the kinds of the optimizers stay as they are, because the
    state belongs to them.
    """

    run: Annotated[str, Word("RUN")]
    """A run folder."""
    step: Annotated[Positive, Field(alias="at")]
    """The step of one of its checkpoints."""
    name: str
    """The name of the new run."""
    overrides: Annotated[dict[str, str], Overrides()] = {}
    """Override keys of the recipe: --optimizer.learning_rate=1e-5, --objective.adversarial_weight=0.01, --steps=20000. Other
    shards need --resume.allow=data.train."""


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(Fork, fork, argv)


def fork(options: Fork) -> None:
    launch_env.check()
    check(options)
    folder = Path(options.run).absolute()
    if "runs" in options.overrides:
        raise UserError("runs: a fork is created beside its run; give --name alone")
    beside = Path(options.run).parent if Path(options.run).name not in ("", "..") else folder.resolve().parent
    if "objective.name" in options.overrides:
        raise UserError("objective.name: a fork keeps its objective, because the checkpoint's state belongs to it")
    fixed = {"name": options.name, "runs": str(beside)}
    recipe = data_checks.load(folder / RECIPE, {**options.overrides, **fixed})

    from sr_dist.recipe import checks  # these load torch, which the checks above do without
    from sr_dist.tools import flops, memory_advice
    from sr_dist.training import forks
    from sr_dist.training import train as training

    recipe = checks.complete(recipe)
    checks.check_launch(recipe, launch_env.launch(bool(recipe.compile)))
    forks.create(folder, options.step, recipe)
    training.train(recipe, training.Estimates(flops.per_image_once, memory_advice.largest_users))


def check(options: Fork) -> None:
    check_exists(options.run, "RUN")
    folder = Path(options.run)
    if not (folder / RECIPE).is_file():
        raise UserError(f"RUN: '{options.run}' is not a run folder: it has no {RECIPE}")
    if (folder.absolute().parent / options.name / RECIPE).is_file():
        return  # it may go on although the run has removed its checkpoint since
    steps = checkpoint_steps(folder)
    if options.step not in steps:
        nearest = sorted(sorted(steps, key=lambda step: abs(step - options.step))[:3])
        names = f"the nearest are {', '.join(map(str, nearest))}" if nearest else "it has none"
        raise UserError(f"at: '{options.run}' has no checkpoint of step {options.step}; {names}")


if __name__ == "__main__":
    sys.exit(main())
