"""The command `python -m sr_dist.train`."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from sr_dist.core import cli, config, launch_env
from sr_dist.core.cli import Overrides, Word
from sr_dist.core.config import OptionalText, Settings
from sr_dist.core.errors import UserError
from sr_dist.data import data_checks
from sr_dist.recipe import checks
from sr_dist.recipe.sections import Recipe

MOST_PROFILED = 100  # steps; a step is about a megabyte


class Train(Settings):
    """Trains the networks of a recipe. Continues from the newest checkpoint if the run folder has one.

    Under a launcher: accelerate launch [--config_file launch/accelerate/X.yaml] -m sr_dist.train RECIPE [--key=value ...]

    SIGTERM, SIGINT, SIGHUP, SIGUSR1 or a file STOP in the run folder stop training after a checkpoint; the same command
    continues.
    Exit codes: 0 done or saved, 2 a mistake in the command or the recipe, 1 anything else.
    """

    recipe: Annotated[str, Word("RECIPE")]
    """The name of a recipe of the package, such as esrgan_x4 (`python -m sr_dist` lists them), or a YAML file. Dotted names in
    it, and a TorchScript file as extractor, run code: read recipes of others before you use them."""
    dry_run: bool = False
    """Print the resolved recipe and what it costs, computed (`sr_dist.plan` says more), and stop."""
    profile: OptionalText = None
    """Record the steps A:B of the first rank, such as 20:24, in the run folder's `profile/`, for https://ui.perfetto.dev."""
    overrides: Annotated[dict[str, str], Overrides()] = {}
    """Override any key of the recipe: --data.batch=8, --name=x, --runs=folder. --resume.allow=a,b continues a run although
    these keys have changed."""


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(Train, train, argv)


def train(options: Train) -> None:
    launch_env.check()
    recipe = data_checks.load(options.recipe, options.overrides)
    if not {"name", "runs"} & options.overrides.keys():
        checks.check_place(Path(options.recipe), recipe)
    profile = span(options.profile, recipe.steps) if options.profile else None

    from sr_dist.tools import flops, memory_advice  # they load torch, as `complete` does, which the checks above do without
    from sr_dist.training import train as training

    recipe = checks.complete(recipe)
    if options.dry_run:
        print(config.text(recipe), end="")
        show_cost(recipe)
    else:
        training.train(recipe, training.Estimates(flops.per_image_once, memory_advice.largest_users), profile)


def span(text: str, steps: int) -> tuple[int, int]:
    """`20:24` -> the first and the last step."""
    match = re.fullmatch(r"([0-9]{1,12}):([0-9]{1,12})", text)
    if not match:
        raise UserError(f"profile: '{text}' is not A:B, the first and the last step, such as 20:24")
    first, last = map(int, match.groups())
    if not 1 <= first <= last:
        raise UserError(f"profile: {text}: steps count from 1, and the first is not after the last")
    if last > steps:
        raise UserError(f"profile: {text}, but the last step of the recipe is {steps}")
    if last - first >= MOST_PROFILED:
        raise UserError(f"profile: {text} are {last - first + 1} steps; a profile has at most {MOST_PROFILED}")
    return first, last


def show_cost(recipe: Recipe) -> None:
    """Ends the recipe with what it costs on the ranks of this launch, as YAML's comments."""
    from sr_dist.tools import flops, plan  # loads torch, which the checks above do without
    from sr_dist.tools.gpus import GPUS

    if launch_env.rank() == 0:
        try:
            lines = plan.summary(recipe, launch_env.num_ranks(), GPUS["h100"], flops.per_image_once(recipe))
        except UserError as problem:
            lines = [f"not computed: {problem}"]
        print("\n".join(f"# {line}" for line in lines))


if __name__ == "__main__":
    sys.exit(main())
