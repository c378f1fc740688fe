"""The training loop. `fit` is the function to read: what happens in a run, in the order in which it happens.

A phase is a network with its optimizer. The objective names the phases and their losses; `step.take_step` computes one step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from sr_dist.core import ranks
from sr_dist.core.batch import Batch
from sr_dist.core.printable import plural
from sr_dist.core.run_layout import DONE, PREEMPTED, SAMPLES
from sr_dist.data.image_pairs import Batches
from sr_dist.data.order import NOISE, draw
from sr_dist.evaluation.partial_results import Abandoned
from sr_dist.evaluation.protocol import protocol
from sr_dist.evaluation.scoring import Scores, Scoring, score
from sr_dist.recipe.columns import CLASSIFICATION
from sr_dist.training import classification, run_folder
from sr_dist.training.profile import Span, profiled
from sr_dist.training.run import Best, Run, ValidationResult, check_folder, check_saves, close, save, save_validated
from sr_dist.training.samples import COUNT, Pair, SampleSheet, draw_samples
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
    if 1 < first <= recipe.steps and run.stop.agreed_at_start():  # a run that continues has a checkpoint already
        run.writer.wait()
        return False
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
    often = min(run.recipe.log_every, run.recipe.max_skipped)  # a streak that lasts is seen at the second check
    if due(run.recipe, often, step):
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
    restores = run.objective.validation == "restoration"
    sheet = None
    if restores:
        sheet = ranks.on_first(lambda: draw_sheet(run))
    if run.validation is None:
        run.log.samples(sheet, [])
        run.state["validated"] = True
        return False
    try:
        result = (validate_generator if restores else classification.validate)(run, run.validation, give_up)
    except Abandoned:  # the process that resumes does it
        return False
    run.state["validated"] = True
    row = {f"validation/{name}": value for name, value in result.metrics.items()}
    run.log.row({"step": run.step, "images": run.images, **row})
    run.log.info(f"step {run.step} validation of {plural(result.images, 'image')}: {result.text}")
    run.log.samples(sheet, result.rows)
    return record_best(run, result.metrics)


def validate_generator(run: Run, batches: Batches, give_up: Callable[[], bool]) -> ValidationResult:
    """All ranks must call."""
    rules = protocol("matlab-y", run.recipe.scale)
    scores = score({"ema": run.upscaler}, batches, Scoring(rules, run.metrics, run.device, give_up=give_up, about="validating"))
    return ValidationResult(len(scores.rows), scores.means("ema"), summary(scores), scores.rows)


def draw_sheet(run: Run) -> SampleSheet | None:
    """The first rank calls."""
    pairs = sample_pairs(run)
    with run.lost.around(SAMPLES):
        sheet = draw_samples(run.recipe, run.step, pairs, run.upscaler, run.device)
        return replace(sheet, images=run.images)
    return None


def sample_pairs(run: Run) -> list[Pair]:
    """The first validation images, or the first training images without a validation set."""
    if run.validation is None:
        return [Pair(batch.keys[0], batch.lr, batch.hr) for batch in run.loader.first_batches(COUNT)]
    pairs: list[Pair] = []
    for number in range(len(run.validation)):
        if len(pairs) >= COUNT:
            break
        batch = run.validation[number]
        if isinstance(batch, Exception):
            raise batch
        pairs += [Pair(name, batch.lr[i : i + 1], batch.hr[i : i + 1]) for i, name in enumerate(batch.names)]
    return pairs[:COUNT]


def summary(scores: Scores) -> str:
    """The means in one line; distances between sets with n and floor."""
    words = []
    for column, value in scores.means("ema").items():
        if value is not None:
            words.append(f"{column} {value:.4f}")
        if column in scores.distances:
            distance = scores.distances[column]
            floor = "" if distance.floor is None else f", floor {distance.floor:.4f}"
            words += [f"(n {estimate.n}{floor})" for estimate in distance.methods.values()]
    return "  ".join(words)


def record_best(run: Run, metrics: Mapping[str, float | None]) -> bool:
    """Records the value of `keep.best` if it beats the recorded one, or if that was measured differently. Returns whether."""
    metric, best = run.recipe.keep.best, run.state["best"]
    value = metrics.get(metric) if metric else None
    if metric is None or value is None:
        return False
    better, by = (run.metrics.better | CLASSIFICATION)[metric], run.metrics.measured_by(metric)
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
