"""Distances between sets of images, from the features of all batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sr_dist.core import ranks
from sr_dist.data.image_pairs import Batches
from sr_dist.evaluation.distances.features import Estimate, Features, Unmeasurable
from sr_dist.evaluation.distances.frechet import Array
from sr_dist.evaluation.distances.reference_cache import Reference, References
from sr_dist.evaluation.metric_set import Metrics, SetMetric
from sr_dist.evaluation.partial_results import PartialResults

HR = 0  # the number of HR among the methods, which are numbered from 1


@dataclass(frozen=True)
class SetDistance:
    """A set metric's values."""

    width: int  # of the features
    floor: float | None  # the distance between halves of HR
    methods: dict[str, Estimate]


@dataclass(frozen=True)
class BatchFeatures:
    """The features in this rank's batches."""

    batches: Batches
    results: PartialResults
    numbers: Sequence[int]  # of this rank's batches
    device: torch.device

    def features(self, view: str, method: int) -> Features:
        arrays = [self.results.array(number, f"{view}/{method}") for number in self.numbers]
        width = max(ranks.all_gather(max((array.shape[1] for array in arrays), default=0)))
        if not width:
            raise Unmeasurable("no image has 299 pixels on both sides")
        groups = [np.array(self.batches.groups[number]) for number in self.numbers]
        images = [np.repeat(group, len(array) // len(group)) for group, array in zip(groups, arrays, strict=True)]
        empty = np.zeros((0, width), np.float32)
        rows = np.concatenate([empty, *(array for array in arrays if len(array))])
        return Features(rows, np.concatenate([np.zeros(0, np.int64), *images]), self.total, self.device)

    def cached(self, reference: Reference) -> Features:
        """The rows of this rank's images in a reference."""
        images = [image for number in self.numbers for image in self.batches.groups[number]]
        return reference.features(np.array(images, np.int64), self.total, self.device)

    @property
    def total(self) -> int:
        return len(self.batches.images.names)


@dataclass(frozen=True)
class HRCache:
    """Features of HR that an earlier evaluation cached, by view, and where to store those that are computed now."""

    loaded: Mapping[str, Reference | None]
    references: References | None = None

    @classmethod
    def load(cls, references: References | None, views: Sequence[str]) -> HRCache:
        """All ranks must call."""
        return cls({view: references.load(view) if references else None for view in views}, references)

    def absent(self) -> list[str]:
        """The views whose features must be computed."""
        return [view for view, reference in self.loaded.items() if reference is None]


def set_distances(
    batches: BatchFeatures, methods: Sequence[str], metrics: Metrics, labels: Array, cache: HRCache
) -> tuple[dict[str, SetDistance], dict[str, str]]:
    """(column -> distance, column or method/column -> why it is missing). All ranks must call."""
    result: dict[str, SetDistance] = {}
    missing: dict[str, str] = {}
    for view in metrics.views:
        columns = metrics.of_sets(view)
        try:
            hr = _hr_features(batches, view, cache)
        except Unmeasurable as reason:
            missing |= dict.fromkeys(columns, str(reason))
            continue
        for number, method in enumerate(methods, HR + 1):
            sr = batches.features(view, number)
            if any(ranks.all_gather(bool(np.isnan(sr.rows).any()))):
                missing |= {f"{method}/{column}": "the method's output for an image is not finite" for column in columns}
                continue
            for column, metric in columns.items():
                try:
                    if column not in result:
                        result[column] = SetDistance(hr.width, _floor(metric, hr, labels), {})
                    result[column].methods[method] = metric.of_sets(sr, hr, labels)
                except Unmeasurable as reason:
                    missing[column] = str(reason)
    return {column: distance for column, distance in result.items() if column not in missing}, missing


def _hr_features(batches: BatchFeatures, view: str, cache: HRCache) -> Features:
    reference = cache.loaded[view]
    hr = batches.cached(reference) if reference else batches.features(view, HR)
    if hr.count() < 2:
        raise Unmeasurable("a set of one image has no spread")
    if cache.references and not reference:
        cache.references.store(view, hr)
    return hr


def _floor(metric: SetMetric, hr: Features, labels: Array) -> float | None:
    try:
        return metric.floor(hr, labels)
    except Unmeasurable:
        return None
