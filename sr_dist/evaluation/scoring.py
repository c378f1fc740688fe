"""One pass over the images: every method upscales, every metric scores, on all ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sr_dist.core import launch_env, ranks
from sr_dist.core.errors import UserError
from sr_dist.data.image_pairs import Batches, ImagePairs, load, numbers_of_this_rank, progress_of
from sr_dist.evaluation.classifiers.classifier_answers import (
    MethodAnswers,
    Row,
    accuracy,
    classify_batch,
    gather_answers,
    rows_with_answers,
)
from sr_dist.evaluation.distances.reference_cache import References
from sr_dist.evaluation.distances.set_distances import HR, BatchFeatures, HRCache, SetDistance, set_distances
from sr_dist.evaluation.methods import Method, SavedImages, restored
from sr_dist.evaluation.metric_set import ImageMetric, Metrics, file_name, needs_reference
from sr_dist.evaluation.partial_results import Abandoned, PartialResults
from sr_dist.evaluation.protocol import Protocol


@dataclass(frozen=True)
class Scoring:
    """What to measure, and how."""

    protocol: Protocol
    metrics: Metrics
    device: torch.device
    workers: int = 0
    give_up: Callable[[], bool] = lambda: False  # asked before every batch
    partial_results: PartialResults = field(default_factory=PartialResults)  # may have some of the batches already
    references: References | None = None
    about: str = "scoring"  # the first word of the progress lines
    saved: SavedImages | None = None  # where the images of methods go


@dataclass(frozen=True)
class Scores:
    rows: list[Row]  # image, method, value per metric or None; each method's in the order of the images
    better: dict[str, str]  # column -> "higher" or "lower"
    distances: dict[str, SetDistance]  # by column
    missing: dict[str, str]  # column or method/column -> why it has no value
    answers: dict[str, MethodAnswers] = field(default_factory=dict)  # by classifier
    accuracies: dict[str, dict[str, float | None]] = field(default_factory=dict)  # column -> method -> value

    def means(self, method: str) -> dict[str, float | None]:
        """Column -> mean over images, or distance, or accuracy. None if an image has no value."""
        rows = [row for row in self.rows if row["method"] == method]
        return {column: self._mean(column, method, rows) for column in self.better}

    def _mean(self, column: str, method: str, rows: list[Row]) -> float | None:
        if column in self.distances:
            estimate = self.distances[column].methods.get(method)
            return estimate.value if estimate else None
        if column in self.accuracies:
            return self.accuracies[column].get(method)
        values = [row[column] for row in rows if row.get(column) is not None]
        return math.fsum(values) / len(values) if values and len(values) == len(rows) else None


@torch.no_grad()
def score(methods: Mapping[str, Method], batches: Batches, scoring: Scoring) -> Scores:
    """The same scores on every rank, except that only the first rank's rows have the classifiers' answers. All ranks must
    call."""
    metrics, results, numbers = scoring.metrics, scoring.partial_results, numbers_of_this_rank(batches)
    cache = HRCache.load(scoring.references, metrics.views)
    _score_missing_batches(methods, batches, scoring, cache.absent())

    facts = [fact for part in ranks.all_gather([results.facts(number) for number in numbers]) for fact in part]
    labels = np.array([label for fact in facts for label in fact["labels"]])
    features = BatchFeatures(batches, results, numbers, scoring.device)
    distances, no_distance = set_distances(features, list(methods), metrics, labels, cache)
    answers, no_answer = gather_answers(metrics.classifiers, list(methods), results, numbers, batches.images.names)
    rows = rows_with_answers((row for fact in facts for row in fact["rows"]), metrics.classifiers, answers)
    accuracies = {
        column: {method: accuracy(of_method, k) for method, of_method in answers[classifier.name].items()}
        for classifier in metrics.classifiers for column, k in classifier.columns.items()
    }  # fmt: skip
    return Scores(rows, metrics.better, distances, {**metrics.missing, **no_distance, **no_answer}, answers, accuracies)


def _score_missing_batches(methods: Mapping[str, Method], batches: Batches, scoring: Scoring, views_of_hr: Sequence[str]) -> None:
    """Scores this rank's batches that have no partial results. All ranks stop if one of them fails or gives up."""
    results, remaining = scoring.partial_results, list[int]()
    needed = [f"{view}/{HR}" for view in views_of_hr]
    with ranks.failing_together():
        remaining = missing_batches(results, scoring.saved, numbers_of_this_rank(batches), needed)
    _announce(len(remaining), len(batches))
    with ranks.failing_together(), resizing_threads() as threads, progress_of(batches, remaining, scoring.about) as progress:
        for number, batch in zip(remaining, load(batches, remaining, scoring.workers), strict=True):
            if scoring.give_up():
                break
            results.put(number, *_score_batch(methods, batch, scoring, views_of_hr, threads))
            progress.advance(len(batch.names))
    if any(ranks.all_gather(scoring.give_up())):
        raise Abandoned


def missing_batches(
    results: PartialResults, saved: SavedImages | None, numbers: Sequence[int], needed: Sequence[str]
) -> list[int]:  # fmt: skip
    """The batches to score: those without results, and those whose images are not where they should be saved."""
    missing = set(results.missing(numbers, needed))
    return [number for number in numbers if number in missing or (saved and not saved.has(results.facts(number)))]


def _announce(remaining: int, batches: int) -> None:
    """Prints how many batches an earlier evaluation finished."""
    done = batches - sum(ranks.all_gather(remaining))
    if ranks.is_first() and done:
        print(f"continuing: {done} of {batches} batches are done", flush=True)


def resizing_threads() -> ThreadPoolExecutor:
    """This rank's threads that resize images for the extractor, beside restoring and metrics. Pillow resizes without the GIL."""
    return ThreadPoolExecutor(max(launch_env.available_cores() // launch_env.num_local_ranks(), 1), "resize")


def _score_batch(
    methods: Mapping[str, Method], batch: ImagePairs, scoring: Scoring, views_of_hr: Sequence[str], threads: Executor
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The partial results of a batch: rows and labels; features of HR and of every method, and classifiers' answers."""
    metrics, protocol = scoring.metrics, scoring.protocol
    hr = batch.hr.to(scoring.device)
    rows: list[Row] = []
    features = {f"{view}/{HR}": _features(metrics, view, hr, threads) for view in views_of_hr}
    arrays = classify_batch(metrics.classifiers, HR, hr, protocol, batch)
    for number, (name, method) in enumerate(methods.items(), HR + 1):
        sr = restored(method, batch, scoring.device)
        if scoring.saved:
            scoring.saved.write(name, batch, sr)
        columns: dict[str, list[float]] = {}
        for metric in metrics.per_image:
            columns.update(_values(metric, sr, hr if needs_reference(metric) else sr, protocol, batch.grey))
        for i, image in enumerate(batch.names):
            values = {column: (value[i] if math.isfinite(value[i]) else None) for column, value in columns.items()}
            rows.append({"image": image, "method": name, **values})
        features |= {f"{view}/{number}": _features(metrics, view, sr, threads) for view in metrics.views}
        arrays |= classify_batch(metrics.classifiers, number, sr, protocol, batch)
    arrays |= {name: finish() for name, finish in features.items()}
    saved = {"saved": scoring.saved.mark()} if scoring.saved else {}
    return {"rows": rows, "labels": batch.label.tolist(), **saved}, arrays


def _values(metric: ImageMetric, sr: Tensor, hr: Tensor, protocol: Protocol, grey: bool) -> dict[str, list[float]]:
    columns = metric.per_image(sr, hr, protocol, grey)
    for column, values in columns.items():
        if column not in metric.BETTER or len(values) != len(sr):
            raise UserError(
                f"metrics: '{file_name(metric)}' returns {len(values)} values of '{column}' for {len(sr)} images; it must return "
                f"one per image, of the columns of its BETTER ({', '.join(metric.BETTER)})"
            )
    return columns


def _features(metrics: Metrics, view: str, images: Tensor, threads: Executor) -> Callable[[], np.ndarray]:
    """A function that returns (B x patches, width); nan for images that are not finite. Threads resize until it is called."""
    extractor = metrics.extractor
    assert extractor
    clean, finite = images.nan_to_num(), images.isfinite().flatten(1).all(1).cpu().numpy()
    count = len(images)  # what is returned must not hold the images

    def without_infinite(rows: np.ndarray) -> np.ndarray:
        rows[~np.repeat(finite, len(rows) // count)] = np.nan
        return rows

    if view == "patches":  # large, and not resized: not kept
        rows = without_infinite(extractor.patches(clean))
        return lambda: rows
    resized = extractor.resized(clean, threads)
    return lambda: without_infinite(extractor.features(resized()))
