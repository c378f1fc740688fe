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
from sr_dist.data.order import NOISE, draw, micro_batch
from sr_dist.evaluation.partial_results import Abandoned
from sr_dist.recipe.columns import CLASSIFICATION
from sr_dist.recipe.weights import weight_at
from sr_dist.training import run_folder, validation
from sr_dist.training.alarms import COLLAPSES, check
from sr_dist.training.engine import is_partitioned
from sr_dist.training.health import Observer, columns, logit_gradient
from sr_dist.training.not_finite import Trained, diagnoses
from sr_dist.training.profile import Span, bar, profiled
from sr_dist.training.rollback import Collapsed, rate_factor
from sr_dist.training.run import Best, Run, check_folder, check_saves, close, save, save_validated
from sr_dist.training.schedule import due, learning_rate
from sr_dist.training.step import Around, StepResult, take_step
from sr_dist.training.throughput import peak_memory_gb, progress_line, step_time_spread

SKIPPED_AT_THE_END = 3  # steps in a row; the weights of a run that ends so are of no use


class Diverged(Collapsed):
    """Too many steps in a row had gradients that are not finite."""

    kind = "diverged"


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
    if run.state["last_saved"] is None and not run.step and recipe.health.on_collapse == "rollback":
        validate(run)  # the starting weights may be the best
        save(run)  # where it goes back to if it collapses before the first checkpoint
    elif recipe.validate_first and recipe.validate_every and run.step == 0:
        validate_start(run)
    run.watchdog.beat("waiting for the first images")
    for step, batches in run.clock.steps(profiled(profile, run, run.loader.steps(first, run.clock.waiting))):
        with bar(step):
            result = advance(run, step, batches)
        run.log.advance(step)
        if step == first and ranks.is_first():
            run_folder.begin_steps(recipe.folder)
        stopping = run.stop.agreed()
        for batch in batches:
            run.trace.write(step, batch.keys)

        line_is_due = run.log.is_line_due()
        if due(recipe, recipe.log_every, step):
            if collapse := report(run, result):
                raise collapse
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
    rates = {phase: rate(run, phase, step) for phase in run.engines if trains(run, phase, step)}
    run.observer = observer_of(run, step, batches)
    around = Around(run.clock.forward, run.observer, weight_at(run.recipe.discriminator_training.noise, step), run.average)
    result = take_step(run.objective, run.engines, batches, run.precision, rates, around)
    note_logits(run)
    run.ema.update()
    if run.power_emas:
        run.power_emas.update(step)
    run.step = step
    run.recent.append(Trained(step, result.losses, result.norms, tuple(key for batch in batches for key in batch.keys)))
    often = min(run.recipe.log_every, run.recipe.max_skipped)  # a streak that lasts is seen at the second check
    if due(run.recipe, often, step):
        check_updates(run, batches)
    return result


def check_updates(run: Run, batches: list[Batch]) -> None:
    """Skipped updates are counted on the device; reading the counts waits for it, so this is not done in every step.

    All ranks must call: gradients are the same on all, buffers are not.
    """
    engines = run.engines.values()
    counts = torch.stack([count.float() for e in engines for count in (e.skipped, e.buffers.refused, e.skipped_total)])
    rows = ranks.all_reduce_max(counts).int().view(-1, 3).tolist()
    explain_skipped(run, batches, sum(total for *_, total in rows))
    check_divergence(run, {name: (skipped, refused) for name, (skipped, refused, _) in zip(run.engines, rows, strict=True)})


def explain_skipped(run: Run, batches: list[Batch], count: int) -> None:
    """Logs what made gradients that are not finite, in the steps since this was last called. All ranks must call."""
    if count > run.num_skipped and run.precision.name != "fp16":  # whose scaler tries out how much is too much
        networks = {name: engine.bare for name, engine in run.engines.items()}
        whole = run.primary == "generator" and not any(is_partitioned(engine) for engine in run.engines.values())
        for line in diagnoses(run.recent, batches, networks if whole else {}):
            run.log.info(line)
    run.num_skipped = count
    run.recent.clear()


def rate(run: Run, phase: str, step: int) -> float:
    """The rate of a network in a step: the recipe's, lower after rollbacks."""
    return learning_rate(run.recipe, phase, step) * rate_factor(run.state["rollbacks"], step)


def trains(run: Run, phase: str, step: int) -> bool:
    """Whether a network is trained in a step. In those without the generator the discriminator is."""
    settings, gradient = run.recipe.discriminator_training, run.state["logit_gradient"]
    with_generator = "discriminator" not in run.engines or settings.trains_generator(step)
    if phase != "discriminator":
        return with_generator
    return not (with_generator and settings.adaptive and gradient is not None and gradient < settings.adaptive)


def note_logits(run: Run) -> None:
    """Waits for the device, in recipes with an adaptive discriminator. All ranks must call: they decide alike."""
    if not run.observer or run.recipe.discriminator_training.adaptive is None:
        return
    names = [name for name in run.observer.sums if name.startswith(("images_", "pull_"))]
    if names:
        totals = ranks.all_reduce_sum(torch.stack([run.observer.sums[name] for name in names]))
        run.state["logit_gradient"] = logit_gradient(dict(zip(names, totals.cpu(), strict=True)))


def observer_of(run: Run, step: int, batches: list[Batch]) -> Observer | None:
    """For a step whose row is logged, of a generator's training; for its logits alone, where the next step depends on them."""
    recipe = run.recipe
    measured = recipe.health.enabled and run.primary == "generator" and due(recipe, recipe.log_every, step)
    if not measured and recipe.discriminator_training.adaptive is None:
        return None
    num_parts, half = len(batches), recipe.precision == "fp16"
    whole = "discriminator" not in run.engines or not is_partitioned(run.engines["discriminator"])
    places = [micro_batch(recipe.data.batch, ranks.size(), num_parts, ranks.rank(), number) for number in range(num_parts)]
    return Observer(places, recipe.data.batch, through=whole, half=half, only_logits=not measured)


def seed_everything(seed: int, step: int, device: torch.device) -> None:
    """Random numbers inside a step depend on (seed, rank, step), so there is no generator state to save.

    `torch.manual_seed` does the same for every GPU of the node, and takes up to 0.7 ms.
    """
    number = draw(seed, epoch=ranks.rank(), sample=step, use=NOISE) >> 1  # 63 bits: a signed integer holds them
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(number)


def check_divergence(run: Run, counts: Mapping[str, tuple[int, int]]) -> None:
    """`counts` has, by network, the steps in a row whose gradients and whose buffers were not finite. All ranks must call."""
    most = run.recipe.max_skipped if run.step < run.recipe.steps else min(run.recipe.max_skipped, SKIPPED_AT_THE_END)
    for name, (skipped, refused) in counts.items():
        if (count := skipped) >= most:
            problem = f"the gradients of the {name} were not finite for {count} steps in a row"
        elif (count := refused) >= most:
            broken = ranks.all_gather(run.engines[name].buffers.broken())
            names = ", ".join(sorted({buffer for part in broken for buffer in part})[:3])
            problem = f"buffers of the {name} ({names}) were not finite after {count} steps in a row and were restored"
        else:
            continue
        raise Diverged(
            f"{problem} (max_skipped), to step {run.step}; a lower optimizer.learning_rate, optimizer.clip or precision=no "
            f"usually helps",
            since=run.step - count + 1,
        )


def report(run: Run, result: StepResult) -> Collapsed | None:
    """Logs one row and one line, and alarms. Returns a collapse that the recipe does not only warn of. All ranks must call: the
    losses are means over the global batch."""
    recipe, images = run.recipe, run.images
    losses = torch.stack([value.double() for value in result.losses.values()])
    seconds = losses.new_zeros(ranks.size())  # one entry per rank, the others 0, so that the sum gathers them
    observer = None if run.observer and run.observer.only_logits else run.observer
    if observer:
        observer.weights(run.ema)
    health = observer.sums if observer else {}
    losses.sum().item()  # waits until the device has finished the step
    seconds[ranks.rank()] = run.clock.own_seconds()
    parts = [losses, seconds, *(value.reshape(-1) for value in health.values())]
    totals = ranks.all_reduce_sum(torch.cat(parts)).cpu().split([len(part) for part in parts])
    values, times = totals[0].tolist(), totals[1].tolist()
    sums = {name: total.view(own.shape) for (name, own), total in zip(health.items(), totals[2:], strict=True)}
    row = {
        "step": run.step,
        "images": images,
        "epoch": images / run.loader.samples if run.loader.samples else None,  # tars without an index
        "learning_rate": rate(run, run.primary, run.step),
        **run.clock.report(recipe.data.batch),
        **step_time_spread(times),
        "memory_gb": peak_memory_gb(),
        **{name if "/" in name else f"loss/{name}": value for name, value in zip(result.losses, values, strict=True)},
        **{f"grad_norm/{name}": float(norm) for name, norm in result.norms.items()},
        **{f"skipped/{name}": int(engine.skipped_total) for name, engine in run.engines.items()},
        **run.loader.log_columns(),
        **columns(sums),
    }
    run.log.row(row)
    run.log.info(progress_line(row, recipe.steps, run.clock.remaining(recipe.steps - run.step)))
    alarms = check(row, recipe.health.alarms, run.state["alarms"]) if observer else []
    for alarm in alarms:
        run.log.alert(f"step {run.step}: {alarm.text}")
    if recipe.health.on_collapse == "warn":
        return None
    collapse = ranks.from_first(lambda: next((alarm for alarm in alarms if alarm.name in COLLAPSES), None))
    return collapse and Collapsed(f"step {run.step}: {collapse.text}", collapse.since)


def show_progress(run: Run) -> None:
    """A line between reports, by the host's clock alone, so that nothing waits for the device. The first rank calls."""
    row = {"step": run.step, "images_per_second": run.clock.speed(run.recipe.data.batch)}
    run.log.info(progress_line(row, run.recipe.steps, run.clock.remaining(run.recipe.steps - run.step)))


@validation.without_timed_kernels()
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
