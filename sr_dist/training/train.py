"""From a checked recipe to a finished run."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass

from sr_dist.core import launch_env, ranks
from sr_dist.core.errors import UserError
from sr_dist.core.printable import printable
from sr_dist.recipe import checks
from sr_dist.recipe.sections import Recipe
from sr_dist.training import classification, rollback, run_folder
from sr_dist.training.build import set_up
from sr_dist.training.loop import finish, fit
from sr_dist.training.needed_files import find_weights
from sr_dist.training.out_of_memory import is_full, out_of_memory, out_of_memory_at_start
from sr_dist.training.profile import Span
from sr_dist.training.run import Run, release
from sr_dist.training.throughput import work
from sr_dist.training.tracker import check_trackers

LONGEST = 4000  # characters of an error in the log: that of a compiler has its whole input


@dataclass(frozen=True)
class Estimates:
    """What tools know of a recipe."""

    flops_per_image: Callable[[Recipe], float | None] = lambda recipe: None
    memory: Callable[[Recipe, int], str] = lambda recipe, ranks: ""  # its largest users, and what to change


def train(recipe: Recipe, estimates: Estimates | None = None, profile: Span | None = None) -> None:
    """Trains a complete recipe. All ranks must call. A user's mistakes are reported before the process group starts.

    `profile` are the first and the last step that are recorded.
    """
    estimates = estimates or Estimates()
    checks.check_launch(recipe, launch_env.launch(bool(recipe.compile)))
    find_weights(recipe)
    check_trackers(recipe)
    missing = run_folder.missing_folders(recipe.folder)
    lock = run_folder.claim(recipe.folder)
    try:
        run_folder.check_recipe(recipe.folder, recipe)
        run = set_up(recipe)
    except BaseException as caught:
        if lock:
            run_folder.remove_unused(recipe.folder, missing)
        if is_full(caught):
            raise out_of_memory_at_start(recipe, caught, estimates.memory) from caught
        raise
    while (done := attempt(run, estimates, profile)) is None:
        del run
        gc.collect()  # the device has room for one run
        run, profile = set_up(recipe), None
    finish(run, done)
    if lock:
        lock.close()


def attempt(run: Run, estimates: Estimates, profile: Span | None) -> bool | None:
    """Trains to the end (True), or until the run is asked to stop (False), or until it is to be set up again from an earlier
    checkpoint (None). All ranks must call."""
    if ranks.is_first():
        run.clock.work = work(estimates.flops_per_image(run.recipe), run.recipe, ranks.size(), run.device)
    try:
        done = fit(run, profile)
        if done and run.objective.validation == "classification":
            classification.report(run)
        return done
    except Exception as caught:
        if isinstance(caught, rollback.Collapsed):
            if rollback.begin(run, caught):
                release(run)
                return None
            end = rollback.ended(run, caught)
            if launch_env.prints_mistakes():  # before trackers close, which may take longer than other ranks live
                print(printable(f"error: {end}"), file=sys.stderr, flush=True)
            run.log.info(f"ended after step {run.step}: {end}")
            run.log.close(code=1)
            raise end from None
        problem = run.loader.describe_failure(caught)
        if is_full(caught):
            problem = out_of_memory(run, caught, estimates.memory)
        if isinstance(problem, UserError) and not problem.on_all_ranks and not launch_env.prints_mistakes():
            print(f"error: rank {ranks.rank()}: {problem}", file=sys.stderr, flush=True)
        run.log.info(f"failed after step {run.step}: {type(problem).__name__}: {shortened(problem)}")
        run.log.close(code=1)
        raise problem from caught if problem is not caught else None
    finally:
        run.loader.close()


def shortened(problem: BaseException) -> str:
    text = str(problem)
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
