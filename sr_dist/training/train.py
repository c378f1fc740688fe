"""From a checked recipe to an ended run."""

from __future__ import annotations

import sys

from sr_dist.core import config, launch_env
from sr_dist.core.errors import UserError
from sr_dist.recipe import checks
from sr_dist.recipe.sections import Recipe
from sr_dist.training import run_folder
from sr_dist.training.needed_files import find_weights


def train(chosen: Recipe, dry_run: bool = False) -> None:
    """All ranks must call. Whatever the user could have got wrong is said before the process group starts."""
    chosen = checks.complete(chosen)
    if dry_run:
        print(config.text(chosen), end="")
        return
    checks.check_launch(chosen, launch_env.launch(chosen.compile))
    find_weights(chosen)
    lock = run_folder.claim(chosen.folder)
    run_folder.check_recipe(chosen.folder, chosen)

    from sr_dist.core import ranks
    from sr_dist.tools import flops
    from sr_dist.training import classification
    from sr_dist.training.build import set_up
    from sr_dist.training.loop import finish, fit

    run = set_up(chosen)
    if ranks.is_first():
        run.clock.work = flops.work(chosen, ranks.size(), run.device)
    try:
        done = fit(run)
        if done and run.objective.validation == "classification":
            classification.report(run)
    except Exception as caught:
        problem = run.stream.explained(caught)
        if isinstance(problem, UserError) and ranks.size() > 1:  # the other ranks know nothing of it and cannot say it
            print(f"error: rank {ranks.rank()}: {problem}", file=sys.stderr, flush=True)
        run.log.say(f"failed after step {run.step}: {type(problem).__name__}: {problem}")
        run.log.close(code=1)
        raise problem from caught if problem is not caught else None
    finally:
        run.stream.close()
    finish(run, done)
    if lock:
        lock.close()
