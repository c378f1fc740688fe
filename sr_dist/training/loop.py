"""`fit` is the function to read: what happens in a run, in the order in which it happens.

A phase is a network with its optimizer. The objective names the phases and their losses; the loop adds the losses up,
and logs each under its name, so that the total, the log and the paper cannot disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sr_dist.core import ranks
from sr_dist.core.batch import Batch
from sr_dist.data.images import Batches
from sr_dist.data.order import NOISE, draw
from sr_dist.evaluation.classifiers.answers import BETTER
from sr_dist.evaluation.partial_results import Abandoned
from sr_dist.evaluation.protocol import protocol
from sr_dist.evaluation.scoring import Scores, score
from sr_dist.training import classification, run_folder
from sr_dist.training.run import Findings, Run, check_saves, close, save
from sr_dist.training.samples import draw_samples
from sr_dist.training.schedule import factor
from sr_dist.training.step import StepResult, take_step
from sr_dist.training.throughput import peak_memory_gb, progress, spread


class Diverged(RuntimeError):
    """Too many steps in a row had gradients that are not finite."""


def fit(run: Run) -> bool:
    """Trains up to the recipe's last step. False if the run was asked to stop before. All ranks must call."""
    recipe, stopping = run.recipe, False
    if not run.state["validated"]:  # owed by the process before this one
        validate(run)
        if not run.state["validated"]:
            return False
        save(run)
    run.watchdog.beat("waiting for the first images")
    for step, micro_batches in run.clock.steps(run.stream.steps(run.step + 1)):
        losses, norms = advance(run, step, micro_batches)
        run.log.advance(step)
        stopping = run.stop.agreed()
        for batch in micro_batches:
            run.trace.write(step, batch.keys)

        if due(run, recipe.log_every):
            report(run, losses, norms)
        with run.clock.paused():
            if due(run, recipe.validate_every):
                best = validate(run) if not stopping else postpone(run)
            else:
                best = False
            owing = not run.state["validated"]
            if due(run, recipe.save_every) or best or stopping or owing:
                save(run)
        if stopping or owing:
            break
        run.watchdog.beat(f"waiting for the images of step {step + 1}")
    run.writer.wait()
    check_saves(run, last=True)
    return run.step >= recipe.steps and run.state["validated"]


def advance(run: Run, step: int, micro_batches: list[Batch]) -> StepResult:
    """Takes one step. All ranks must call."""
    run.watchdog.beat(f"training step {step}")
    seed_everything(run.recipe.seed, step)
    rates = {name: learning_rate(run, name, step) for name in run.phases}
    result = take_step(run.objective, run.phases, micro_batches, run.precision, rates, run.clock.alone)
    run.ema.update()
    run.step = step
    if step % min(run.recipe.log_every, run.recipe.max_skipped) == 0:
        check_divergence(run)
    return result


def due(run: Run, period: int | None) -> bool:
    """Every so many steps, and always at the end."""
    return run.step == run.recipe.steps or (period is not None and run.step % period == 0)


def learning_rate(run: Run, phase: str, step: int) -> float:
    return run.recipe.optimizer_of(phase).learning_rate * factor(run.recipe.schedule, step)


def seed_everything(seed: int, step: int) -> None:
    """Randomness inside a step comes from (seed, rank, step), so there is no history to save."""
    torch.manual_seed(draw(seed, ranks.rank(), step, NOISE) >> 1)


def check_divergence(run: Run) -> None:
    """Skipped updates are counted on the device; now and then it is asked whether they are too many in a row."""
    for name, engine in run.phases.items():
        if (count := int(engine.skipped)) >= run.recipe.max_skipped:
            raise Diverged(
                f"the gradients of the {name} were not finite for {count} steps in a row (max_skipped), to step {run.step}; "
                f"a lower optimizer.learning_rate, optimizer.clip or precision=no usually helps"
            )


def report(run: Run, losses: Mapping[str, Tensor], norms: Mapping[str, Tensor]) -> None:
    """One row and one line about this step. All ranks must call: the losses are means over the global batch."""
    recipe, images = run.recipe, run.step * run.recipe.data.batch
    mine = torch.stack([value.double() for value in losses.values()])
    seconds = mine.new_zeros(ranks.size())
    mine.sum().item()  # the device is done with the step
    seconds[ranks.rank()] = run.clock.seconds_alone()
    values = ranks.total(torch.cat([mine, seconds])).tolist()
    values, times = values[: len(losses)], values[len(losses) :]
    row = {
        "step": run.step,
        "images": images,
        "epoch": images / run.stream.samples,
        "learning_rate": learning_rate(run, run.primary, run.step),
        **run.clock.report(recipe.data.batch),
        **spread(times),
        "memory_gb": peak_memory_gb(),
        **{name if "/" in name else f"loss/{name}": value for name, value in zip(losses, values, strict=True)},
        **{f"grad_norm/{name}": float(norm) for name, norm in norms.items()},
        **{f"skipped/{name}": int(engine.skipped_in_all) for name, engine in run.phases.items()},
        **run.stream.counted(),
    }
    run.log.row(row)
    run.log.say(progress(row, recipe.steps, run.clock.remaining(recipe.steps - run.step)))


def validate(run: Run) -> bool:
    """Scores the EMA on the validation images over all ranks; True if it is the best so far. All ranks must call."""
    run.state["validated"] = True
    recipe = run.recipe

    def give_up() -> bool:
        run.watchdog.beat(f"validating after step {run.step}")
        return run.stop.pending()

    give_up()
    run.ema.gather()
    restores = run.objective.validation == "restoration"
    sheet = draw_samples(run) if restores else None
    if run.validation is None:
        run.log.samples(sheet, [])
        return False
    try:
        found = (restored if restores else classification.validated)(run, run.validation, give_up)
    except Abandoned:
        return postpone(run)
    row = {f"validation/{name}": value for name, value in found.metrics.items()}
    run.log.row({"step": run.step, "images": run.step * recipe.data.batch, **row})
    run.log.say(f"step {run.step} validation of {found.images} images: {found.said}")
    run.log.samples(sheet, found.rows)
    return is_best(run, found.metrics)


def restored(run: Run, batches: Batches, give_up: Callable[[], bool]) -> Findings:
    """The EMA on the validation images. All ranks must call."""
    rules = protocol("matlab-y", run.recipe.scale)
    scores = score({"ema": run.upscaler}, batches, rules, run.device, run.metrics, give_up=give_up)
    return Findings(len(scores.rows), scores.means("ema"), summary(scores), scores.rows)


def summary(scores: Scores) -> str:
    """The validation's means in one line, distances between sets with their conditions."""
    words = []
    for column, value in scores.means("ema").items():
        if value is not None:
            words.append(f"{column} {value:.4f}")
        if column in scores.distances:
            found = scores.distances[column]
            floor = "" if found.floor is None else f", floor {found.floor:.4f}"
            words += [f"(n {estimate.n}{floor})" for estimate in found.methods.values()]
    return "  ".join(words)


def is_best(run: Run, found: Mapping[str, float | None]) -> bool:
    """Notes a new best value of the metric in `keep.best`."""
    metric, best = run.recipe.keep.best, run.state["best"]
    value = found.get(metric) if metric else None
    if metric is None or value is None:
        return False
    sense, by = (run.metrics.better | BETTER)[metric], run.metrics.measured_by(metric)
    comparable = best and (best["metric"], best.get("by")) == (metric, by)
    if comparable and (value <= best["value"] if sense == "higher" else value >= best["value"]):
        return False
    run.state["best"] = {"metric": metric, "value": value, "step": run.step, "by": by}
    return True


def postpone(run: Run) -> bool:
    """The validation of this step is owed: it is made up for after resuming."""
    run.state["validated"] = False
    return False


def finish(run: Run, done: bool) -> None:
    """The marker that scripts wait for. All ranks must call."""
    if ranks.is_first():
        run_folder.mark(run.recipe.folder, "DONE" if done else "PREEMPTED", f"step {run.step}")
    reason = f" ({run.stop.reason})" if run.stop.reason else ""
    if done:
        run.log.say(f"done after {run.step} steps")
    else:
        run.log.preempted(f"stopped after step {run.step}{reason}; the same command continues")
    close(run, code=0 if done else 1)
