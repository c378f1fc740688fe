"""What a validation measures: each of the recipe's sets of images, beside bicubic's numbers on the same images.

Bicubic is scored in the first validation of a process, in the same pass; its numbers do not change after that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch

from sr_dist.core.printable import plural
from sr_dist.core.run_layout import SAMPLES
from sr_dist.data.image_pairs import Batches
from sr_dist.evaluation.baselines import baseline
from sr_dist.evaluation.protocol import protocol
from sr_dist.evaluation.scoring import Scores, Scoring, score
from sr_dist.training import classification
from sr_dist.training.run import Run, ValidationResult
from sr_dist.training.samples import COUNT, EMA, Pair, SampleSheet, WholeImages, draw_samples

REFERENCE = "bicubic"
GiveUp = Callable[[], bool]


@contextmanager
def without_timed_kernels() -> Iterator[None]:
    """Images of validation vary in size, and cuDNN would time its kernels for each."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def validate_sets(run: Run, give_up: GiveUp) -> ValidationResult:
    """Scores the averaged weights on every set. Raises `Abandoned` where `give_up` says so. All ranks must call."""
    restores = run.objective.validation == "restoration"
    results: dict[str, ValidationResult] = {}
    for name, batches in run.validation.items():
        validate_one = validate_generator if restores else classification.validate
        result = validate_one(run, name, batches, give_up)
        images = plural(result.images, "image")
        run.log.info(f"step {run.step} validation of {f'{name}, ' if name else ''}{images}: {result.text}")
        results[name] = result
    return joined(results)


def joined(results: Mapping[str, ValidationResult]) -> ValidationResult:
    """One set's own result; of several their means, and the numbers of each under `NAME/COLUMN`."""
    if "" in results:
        return results[""]
    return ValidationResult(
        images=sum(result.images for result in results.values()),
        metrics=_with_means({name: result.metrics for name, result in results.items()}),
        text="",
        rows=[row for result in results.values() for row in result.rows],
        reference=_with_means({name: result.reference for name, result in results.items()}),
    )


def _with_means(sets: Mapping[str, Mapping[str, float | None]]) -> dict[str, float | None]:
    """The mean over sets of each column; None where one has no value."""
    means: dict[str, float | None] = {}
    for column in next(iter(sets.values())):
        values = [values[column] for values in sets.values()]
        numbers = [value for value in values if value is not None]
        means[column] = sum(numbers) / len(numbers) if len(numbers) == len(values) else None
    return means | {f"{name}/{column}": value for name, values in sets.items() for column, value in values.items()}


def validate_generator(run: Run, name: str, batches: Batches, give_up: GiveUp) -> ValidationResult:
    """Of one set. All ranks must call."""
    recipe = run.recipe
    methods = {EMA: run.upscaler}
    if name not in run.reference:
        methods[REFERENCE] = baseline(REFERENCE, recipe.scale)
    images = WholeImages.of(recipe, run.step, name, batches.images.names, run.lost)
    scoring = Scoring(
        protocol("matlab-y", recipe.scale),
        run.metrics,
        run.device,
        give_up=give_up,
        about=f"validating {name}".strip(),
        saved=images,
    )
    scores = score(methods, batches, scoring)
    if name not in run.reference:
        run.reference[name] = scores.means(REFERENCE)
    rows = [row for row in scores.rows if row["method"] == EMA]
    reference = run.reference[name]
    return ValidationResult(len(rows), scores.means(EMA), summary(scores, reference), rows, reference)


def summary(scores: Scores, reference: Mapping[str, float | None]) -> str:
    """The means in one line, with bicubic's; distances between sets with n and floor."""
    words = []
    for column, value in scores.means(EMA).items():
        if value is not None:
            beside = reference.get(column)
            words.append(f"{column} {value:.4f}" + ("" if beside is None else f" (bicubic {beside:.4f})"))
        if column in scores.distances:
            distance = scores.distances[column]
            floor = "" if distance.floor is None else f", floor {distance.floor:.4f}"
            words += [f"(n {estimate.n}{floor})" for method, estimate in distance.methods.items() if method == EMA]
    return "  ".join(words)


def draw_sheet(run: Run) -> SampleSheet | None:
    """The first rank calls."""
    pairs = sample_pairs(run)
    with run.lost.around(SAMPLES):
        sheet = draw_samples(run.recipe, run.step, pairs, run.upscaler, run.device)
        return replace(sheet, images=run.images)
    return None


def sample_pairs(run: Run) -> list[Pair]:
    """The first validation images of each set in turn, or the first training images without a validation set."""
    if not run.validation:
        return [Pair(batch.keys[0], batch.lr, batch.hr) for batch in run.loader.first_batches(COUNT)]
    each = -(-COUNT // len(run.validation))
    return [pair for name, batches in run.validation.items() for pair in _first_pairs(name, batches, each)][:COUNT]


def _first_pairs(set_name: str, batches: Batches, count: int) -> list[Pair]:
    pairs: list[Pair] = []
    for number in range(len(batches)):
        if len(pairs) >= count:
            break
        batch = batches[number]
        if isinstance(batch, Exception):
            raise batch
        names = [f"{set_name}/{name}" if set_name else name for name in batch.names]
        pairs += [Pair(name, batch.lr[i : i + 1], batch.hr[i : i + 1]) for i, name in enumerate(names)]
    return pairs[:count]
