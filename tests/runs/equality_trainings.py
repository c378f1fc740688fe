"""Run by the equality tests: several small trainings in one process group, one after the other.

equality_trainings.py JOBS.json      a list of {"recipe", "options", "fault"}; the run folders hold the results
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sr_dist.core import ranks
from sr_dist.data import data_checks
from sr_dist.recipe import checks
from sr_dist.recipe.sections import Recipe
from sr_dist.training import classification, step
from sr_dist.training.build import set_up
from sr_dist.training.ddp import DDPEngine
from sr_dist.training.loop import fit


def main() -> None:
    for number, job in enumerate(json.loads(Path(sys.argv[1]).read_text())):
        recipe = checks.complete(data_checks.load(job["recipe"], job["options"]))
        with planted(job["fault"]):
            train(recipe)
        if number == 0:
            gc.collect()
            gc.freeze()  # DeepSpeed collects garbage for every engine; this spares it the modules that are loaded by now
    ranks.barrier()
    ranks.destroy_group()


def train(recipe: Recipe) -> None:
    """Does the same as `sr_dist.training.train`, but stays in the process group."""
    run = set_up(recipe)
    frozen = {name: value.clone() for name, value in run.objective.state_dict().items()}
    assert fit(run)
    assert all(value.equal(frozen[name]) for name, value in run.objective.state_dict().items())  # classifiers in losses
    if run.objective.validation == "classification":
        classification.report(run)
    run.loader.close()
    run.stop.close()
    run.watchdog.close()
    run.log.close()


@contextmanager
def planted(fault: str | None) -> Iterator[None]:
    """Plants a mistake that a training loop could have, to show that the comparison detects it."""
    frozen, weighted_sum, accumulating = step.frozen, step.weighted_sum, DDPEngine.accumulating

    @contextmanager
    def nothing(*_, **__):
        yield

    if fault == "discriminator not frozen":
        step.frozen = nothing
    elif fault == "loss not divided":
        step.weighted_sum = lambda *args: weighted_sum(*args) * 2  # the faulty jobs have two micro-batches
    elif fault == "gradients not reduced":
        DDPEngine.accumulating = lambda engine, last: accumulating(engine, False)
    else:
        assert fault is None
    yield
    step.frozen, step.weighted_sum, DDPEngine.accumulating = frozen, weighted_sum, accumulating


if __name__ == "__main__":
    main()
