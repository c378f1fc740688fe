"""Run by the equality tests under a launcher: several small trainings in one process group, one after the other.

equality_trainings.py JOBS.json      a list of {"recipe", "options", "fault"}; the run folders hold the results
"""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from pathlib import Path

from sr_dist.core import ranks
from sr_dist.data import data_checks
from sr_dist.recipe import checks
from sr_dist.recipe.sections import Recipe


def main() -> None:
    for job in json.loads(Path(sys.argv[1]).read_text()):
        chosen = checks.complete(data_checks.load(job["recipe"], job["options"]))
        with planted(job["fault"]):
            train(chosen)
    ranks.wait()
    ranks.leave()


def train(chosen: Recipe) -> None:
    """What `engine.train` does, without leaving the process group."""
    from sr_dist.training import classification
    from sr_dist.training.build import set_up
    from sr_dist.training.loop import fit

    run = set_up(chosen)
    frozen = {name: value.clone() for name, value in run.objective.state_dict().items()}
    assert fit(run)
    assert all(value.equal(frozen[name]) for name, value in run.objective.state_dict().items())  # classifiers in losses
    if run.objective.validation == "classification":
        classification.report(run)
    run.stop.close()
    run.watchdog.close()
    run.log.close()


@contextmanager
def planted(fault: str | None):
    """A mistake that a training loop could have, to show that the comparison would see it."""
    from sr_dist.training import step
    from sr_dist.training.ddp import Engine

    @contextmanager
    def nothing(*_, **__):
        yield

    def undivided(terms, batch, losses):
        return right[1](terms, batch, losses) * 2  # the faulty jobs have two micro-batches

    def silent(self, last):
        return right[2](self, False)

    right = step.frozen, step.weighted_sum, Engine.accumulating
    faults = {"critic not frozen": (nothing, right[1], right[2]), "loss not divided": (right[0], undivided, right[2])}
    faults["gradients not reduced"] = (right[0], right[1], silent)
    step.frozen, step.weighted_sum, Engine.accumulating = faults.get(fault, right)
    yield
    step.frozen, step.weighted_sum, Engine.accumulating = right


if __name__ == "__main__":
    main()
