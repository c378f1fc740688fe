"""Back to an earlier checkpoint with lower rates, after a collapse (`health.on_collapse: rollback`).

run.json lists the rollbacks of a run under `rollbacks`, and every checkpoint those before it. The rates follow from them:

    rate(step) = recipe's rate x the factors of all rollbacks with `to` < step

Steps after `to` are dropped with each rollback, so a step of the run that survives has the rates with which it was trained, also
after a kill, in a replay and in a fork. A rollback is three writes: it is recorded, newer checkpoints are removed, it is marked
as done. A process that starts finishes what one before it began. The start itself drops the rows of later steps, as after a kill.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

from sr_dist.core import ranks
from sr_dist.core.errors import RunEnded
from sr_dist.core.run_layout import RUN, checkpoint_folder, checkpoint_steps, record_rollbacks, rollbacks_of
from sr_dist.training.checkpoint import damage
from sr_dist.training.run import Rollback, Run


class Collapsed(RunEnded):
    """The run is of no use from the step `since` on."""

    kind = "collapsed"

    def __init__(self, text: str, since: int) -> None:
        super().__init__(text)
        self.since = since


def begin(run: Run, collapse: Collapsed) -> bool:
    """Records a rollback and removes what comes after its checkpoint, if the recipe asks for one and one is left. All ranks must
    call, and set up the run again where the result is True."""
    health = run.recipe.health
    if health.on_collapse != "rollback":
        return False

    def write() -> bool:
        run.writer.wait()
        past, to = run.state["rollbacks"], target(run, collapse.since)
        if len(past) >= health.rollbacks or to is None:
            run.log.info(f"no rollback: {f'there were {len(past)}' if to is not None else 'no checkpoint is from before'}")
            return False
        now = Rollback(step=run.step, to=to, reason=str(collapse), factor=health.factor, done=False)
        record_rollbacks(run.recipe.folder, [*past, now])
        finish(run.recipe.folder)
        run.log.alert(f"step {run.step}: back to the checkpoint of step {to}, with rates {health.factor:g} times as high")
        return True

    return bool(ranks.from_first(write))


def ended(run: Run, collapse: Collapsed) -> Collapsed:
    """What the command says when the run is over. All ranks must call."""

    def place() -> str:
        run.writer.wait()
        if (to := target(run, collapse.since)) is not None:
            return f"the checkpoint of step {to} is from before"
        return "no checkpoint is from before" if checkpoint_steps(run.recipe.folder) else "no checkpoint exists yet"

    text = f"the training has {collapse.kind}: {collapse}; {ranks.from_first(place)}"
    return type(collapse)(text, collapse.since)


def target(run: Run, since: int) -> int | None:
    """The best checkpoint, unless it was saved when the run had collapsed; else the newest one from before.

    The row of a step is of the weights before it: the checkpoint of the step before `since` has collapsed.
    """
    folder = run.recipe.folder
    whole = [step for step in checkpoint_steps(folder) if step < since - 1 and damage(checkpoint_folder(folder, step)) is None]
    best = run.state["best"]["step"] if run.state["best"] else None
    return best if best in whole else max(whole, default=None)


def finish(folder: Path) -> None:
    """Removes the checkpoints after that of a rollback that is not done, newest first. The first rank calls."""
    if not (folder / RUN).exists():
        return
    rollbacks = rollbacks_of(folder)
    if all(rollback["done"] for rollback in rollbacks):
        return
    to = rollbacks[-1]["to"]
    for step in reversed(checkpoint_steps(folder)):
        if step > to:
            shutil.rmtree(checkpoint_folder(folder, step))
    record_rollbacks(folder, [{**rollback, "done": True} for rollback in rollbacks])


def rate_factor(rollbacks: Sequence[Rollback], step: int) -> float:
    """The factor of all rates in a step."""
    return math.prod(rollback["factor"] for rollback in rollbacks if step > rollback["to"])
