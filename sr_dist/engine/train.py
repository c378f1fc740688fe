"""From a checked recipe to an ended run."""

from __future__ import annotations

import os
import sys

from sr_dist import config, recipe
from sr_dist.engine import run_folder
from sr_dist.errors import UserError
from sr_dist.sections import Recipe


def train(chosen: Recipe, dry_run: bool = False) -> None:
    """All ranks must call. Whatever the user could have got wrong is said before the process group starts."""
    chosen = recipe.complete(chosen)
    if dry_run:
        print(config.text(chosen), end="")
        return
    check_launch(chosen)
    recipe.find_weights(chosen)
    lock = run_folder.claim(chosen.folder)
    run_folder.check_recipe(chosen.folder, chosen)

    from sr_dist import ranks
    from sr_dist.engine import classification, flops
    from sr_dist.engine.loop import finish, fit
    from sr_dist.engine.setup import set_up

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


def check_launch(chosen: Recipe) -> None:
    """The recipe can run under what the launcher asks for."""
    import torch

    zero = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    recipe.check_backend(
        chosen,
        zero_stage=int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")) if zero else 0,
        cuda=torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "false").lower() not in ("true", "1"),
        ranks=int(os.environ.get("WORLD_SIZE", "1")),
    )
