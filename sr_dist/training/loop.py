"""The training loop. `fit` is the function to read: what happens in a run, in the order in which it happens.

A phase is a network with its optimizer. The objective names the phases and their losses; `step.take_step` computes one step.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from sr_dist.core import ranks
from sr_dist.core.batch import Batch
from sr_dist.core.printable import plural
from sr_dist.core.run_layout import DONE, PREEMPTED
from sr_dist.data.order import NOISE, draw
from sr_dist.evaluation.partial_results import Abandoned
from sr_dist.recipe.columns import CLASSIFICATION
from sr_dist.training import run_folder, validation
from sr_dist.training.profile import Span, profiled
from sr_dist.training.run import Best, Run, check_folder, check_saves, close, save, save_validated
from sr_dist.training.schedule import due, learning_rate
from sr_dist.training.step import StepResult, take_step
from sr_dist.training.throughput import peak_memory_gb, progress_line, step_time_spread

SKIPPED_AT_THE_END = 3  # steps in a row; the weights of a run that ends so are of no use


class Diverged(RuntimeError):
    """Too many steps in a row had gradients that are not finite."""


def fit(run: Run, profile: Span | None = None) -> bool:
    """Trains up to the recipe's last step. Returns False if the run was asked to stop before. All ranks must call."""
    recipe, stopping = run.recipe, False
    if not run.state["validated"]:  # the process before this one postponed it, or failed in it
        validate(run)
        if not run.state["validated"]:
            return False
        save_validated(run)
    first = run.step + 1
    if run.step >= recipe.steps:
        beyond = "" if run.step == recipe.steps else f", and steps: {recipe.steps} is less"
        run.log.info(f"the run has {plural(run.step, 'step')} already{beyond}: nothing is trained; a larger --steps=N goes on")
    if 1 < first <= recipe.steps and run.stop.agreed_at_start():  # a run that continues has a checkpoint already
        run.writer.wait()
        return False
    if recipe.validate_first and recipe.validate_every and run.step == 0:
        validate_start(run)
    run.watchdog.beat("waiting for the first images")
    for step, batches in run.clock.steps(profiled(profile, run, run.loader.steps(first, run.clock.waiting))):
        result = advance(run, step, batches)
        run.log.advance(step)
        if step == first and ranks.is_first():
            run_folder.begin_steps(recipe.folder)
        stopping = run.stop.agreed()
        for batch in batches:
            run.trace.write(step, batch.keys)

        line_is_due = run.log.is_line_due()
        if due(recipe, recipe.log_every, step):
            report(run, result)
        elif line_is_due:
            show_progress(run)
        with run.clock.paused():
            validating = due(recipe, recipe.validate_every, step)
            saved = stopping or due(recipe, recipe.save_every, step)
            run.state["validated"] = not validating
            if saved:
                save(run)  # first, so that a validation that fails costs no step
            new_best = validating and not stopping and validate(run)
            if saved and validating and run.state["validated"]:
                save_validated(run)
            elif not saved and (new_best or not run.state["validated"]):
                save(run)
        if stopping or not run.state["validated"]:
            break
        run.watchdog.beat(f"waiting for the images of step {step + 1}")
    run.writer.wait()
    check_saves(run, last=True)
    return run.step >= recipe.steps and run.state["validated"]


def advance(run: Run, step: int, batches: list[Batch]) -> StepResult:
    """Takes one step from its micro-batches. All ranks must call."""
    run.watchdog.beat(f"training step {step}")
    seed_everything(run.recipe.seed, step, run.device)
    rates = {phase: learning_rate(run.recipe, phase, step) for phase in run.engines}
    result = take_step(run.objective, run.engines, batches, run.precision, rates, run.clock.forward)
    run.ema.update()
    if run.power_emas:
        run.power_emas.update(step)
    run.step = step
    if due(
        run.recipe, min(run.recipe.log_every, run.recipe.max_skipped), step
    ):  # a streak that lasts is seen at the second check
        check_divergence(run)
    return result


def seed_everything(seed: int, step: int, device: torch.device) -> None:
    """Random numbers inside a step depend on (seed, rank, step), so there is no generator state to save.

    `torch.manual_seed` does the same for every GPU of the node, and takes up to 0.7 ms.
    """
    number = draw(seed, epoch=ranks.rank(), sample=step, use=NOISE) >> 1  # 63 bits: a signed integer holds them
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(number)


def check_divergence(run: Run) -> None:
    """Skipped updates are counted on the device; reading the count waits for it, so this is not done in every step.

    All ranks must call: gradients are the same on all, buffers are not.
    """
    engines = run.engines.values()
    most = run.recipe.max_skipped if run.step < run.recipe.steps else min(run.recipe.max_skipped, SKIPPED_AT_THE_END)
    counts = ranks.all_reduce_max(torch.stack([count.float() for e in engines for count in (e.skipped, e.buffers.refused)]))
    for (name, engine), (skipped, refused) in zip(run.engines.items(), counts.int().view(-1, 2).tolist(), strict=True):
        if (count := skipped) >= most:
            problem = f"the gradients of the {name} were not finite for {count} steps in a row"
        elif (count := refused) >= most:
            names = ", ".join(sorted({name for part in ranks.all_gather(engine.buffers.broken()) for name in part})[:3])
            problem = f"buffers of the {name} ({names}) were not finite after {count} steps in a row and were restored"
        else:
            continue
        raise Diverged(
            f"{problem} (max_skipped), to step {run.step}; a lower optimizer.learning_rate, optimizer.clip or precision=no "
            f"usually helps"
        )


def report(run: Run, result: StepResult) -> None:
    """Logs one row and one line. All ranks must call: the losses are means over the global batch."""
    recipe, images = run.recipe, run.images
    losses = torch.stack([value.double() for value in result.losses.values()])
    seconds = losses.new_zeros(ranks.size())  # one entry per rank, the others 0, so that the sum gathers them
    losses.sum().item()  # waits until the device has finished the step
    seconds[ranks.rank()] = run.clock.own_seconds()
    totals = ranks.all_reduce_sum(torch.cat([losses, seconds])).tolist()
    values, times = totals[: len(losses)], totals[len(losses) :]
    row = {
        "step": run.step,
        "images": images,
        "epoch": images / run.loader.samples,
        "learning_rate": learning_rate(recipe, run.primary, run.step),
        **run.clock.report(recipe.data.batch),
        **step_time_spread(times),
        "memory_gb": peak_memory_gb(),
        **{name if "/" in name else f"loss/{name}": value for name, value in zip(result.losses, values, strict=True)},
        **{f"grad_norm/{name}": float(norm) for name, norm in result.norms.items()},
        **{f"skipped/{name}": int(engine.skipped_total) for name, engine in run.engines.items()},
        **run.loader.log_columns(),
    }
    run.log.row(row)
    run.log.info(progress_line(row, recipe.steps, run.clock.remaining(recipe.steps - run.step)))


def show_progress(run: Run) -> None:
    """A line between reports, by the host's clock alone, so that nothing waits for the device. The first rank calls."""
    row = {"step": run.step, "images_per_second": run.clock.speed(run.recipe.data.batch)}
    run.log.info(progress_line(row, run.recipe.steps, run.clock.remaining(run.recipe.steps - run.step)))


def validate(run: Run) -> bool:
    """Scores the generator with averaged weights (EMA) on the validation images. Returns True if it is the best so far.
    `run.state["validated"]` becomes True unless the run is asked to stop before. All ranks must call."""
    check_folder(run)

    def give_up() -> bool:
        run.watchdog.beat(f"validating after step {run.step}")
        return run.stop.pending()

    run.watchdog.beat(f"validating after step {run.step}")  # `give_up` does it again between batches
    run.ema.gather()
    sheet = None
    if run.objective.validation == "restoration":
        sheet = ranks.on_first(lambda: validation.draw_sheet(run))
    if not run.validation:
        run.log.samples(sheet, [])
        run.state["validated"] = True
        return False
    try:
        result = validation.validate_sets(run, give_up)
    except Abandoned:  # the process that resumes does it
        return False
    run.state["validated"] = True
    row = {f"validation/{name}": value for name, value in result.metrics.items()}
    row |= {f"{validation.REFERENCE}/{name}": value for name, value in result.reference.items()}
    run.log.row({"step": run.step, "images": run.images, **row})
    run.log.samples(sheet, result.rows)
    return record_best(run, result.metrics)


def validate_start(run: Run) -> None:
    """The row of step 0, and a validation that fails before training does. All ranks must call."""
    validate(run)
    run.state["best"], run.state["validated"] = None, True  # no checkpoint has these weights, and no other process repeats it


def record_best(run: Run, metrics: Mapping[str, float | None]) -> bool:
    """Records the value of `keep.best` if it beats the recorded one, or if that was measured differently. Returns whether."""
    metric, best = run.recipe.keep.best, run.state["best"]
    value = metrics.get(metric) if metric else None
    if metric is None or value is None:
        return False
    column = metric.rpartition("/")[2]  # of one of several sets, or of their means
    better, by = (run.metrics.better | CLASSIFICATION)[column], run.metrics.measured_by(column)
    comparable = best is not None and (best["metric"], best.get("by")) == (metric, by)
    if best is not None and comparable and (value <= best["value"] if better == "higher" else value >= best["value"]):
        return False
    run.state["best"] = Best(metric=metric, value=value, step=run.step, by=by)
    return True


def finish(run: Run, done: bool) -> None:
    """Writes the marker that scripts wait for, and closes the run. All ranks must call."""
    ranks.on_first(lambda: run_folder.mark(run.recipe.folder, DONE if done else PREEMPTED, f"step {run.step}"))
    reason = f" ({run.stop.reason})" if run.stop.reason else ""
    if done:
        run.log.info(f"done after {plural(run.step, 'step')}")
    else:
        run.log.preempted(f"stopped after step {run.step}{reason}; the same command continues")
    close(run, code=0 if done else 1)
