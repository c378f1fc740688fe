"""From the features of a pass to the distances between sets of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sr_dist.core import ranks
from sr_dist.data.images import Batches
from sr_dist.evaluation.distances.features import Estimate, Features, Unmeasurable
from sr_dist.evaluation.distances.frechet import Array
from sr_dist.evaluation.distances.reference_cache import Reference, References
from sr_dist.evaluation.metric_set import Metrics
from sr_dist.evaluation.partial_results import Parts

HR = 0  # methods are numbered from 1


@dataclass(frozen=True)
class Distances:
    """What a metric of sets found."""

    width: int  # of the features
    floor: float | None  # between halves of HR
    methods: dict[str, Estimate]


@dataclass(frozen=True)
class Found:
    """What this rank's batches hold."""

    batches: Batches
    parts: Parts
    numbers: Sequence[int]
    device: torch.device

    def features(self, view: str, method: int) -> Features:
        parts = [self.parts.array(number, f"{view}/{method}") for number in self.numbers]
        width = max(ranks.gather(max((part.shape[1] for part in parts), default=0)))
        if not width:
            raise Unmeasurable("no image has 299 pixels on both sides")
        groups = [np.array(self.batches.groups[number]) for number in self.numbers]
        images = [np.repeat(group, len(part) // len(group)) for group, part in zip(groups, parts, strict=True)]
        nothing = np.zeros((0, width), np.float32)
        rows = np.concatenate([nothing, *(part for part in parts if len(part))])
        return Features(rows, np.concatenate([np.zeros(0, np.int64), *images]), self.total, self.device)

    def share(self, reference: Reference) -> Features:
        mine = [image for number in self.numbers for image in self.batches.groups[number]]
        return reference.share(np.array(mine, np.int64), self.total, self.device)

    @property
    def total(self) -> int:
        return len(self.batches.images.names)


def distances(
    found: Found, methods: Sequence[str], metrics: Metrics, labels: Array,
    kept: dict[str, Reference | None], references: References | None,
) -> tuple[dict[str, Distances], dict[str, str]]:  # fmt: skip
    """(column -> distances, column or method/column -> why there is none). All ranks must call."""
    result: dict[str, Distances] = {}
    missing: dict[str, str] = {}
    for view in metrics.views:
        columns, reference = metrics.of_sets(view), kept[view]
        try:
            hr = found.share(reference) if reference else found.features(view, HR)
            if hr.count() < 2:
                raise Unmeasurable("a set of one image has no spread")
        except Unmeasurable as reason:
            missing |= dict.fromkeys(columns, str(reason))
            continue
        if references and not reference:
            references.keep(view, hr)
        for number, method in enumerate(methods, HR + 1):
            sr = found.features(view, number)
            if any(ranks.gather(bool(np.isnan(sr.rows).any()))):
                missing |= {f"{method}/{column}": "what the method made of an image is not finite" for column in columns}
                continue
            for column, module in columns.items():
                try:
                    if column not in result:
                        result[column] = Distances(hr.width, _floor(module, hr, labels), {})
                    result[column].methods[method] = module.of_sets(sr, hr, labels)
                except Unmeasurable as reason:
                    missing[column] = str(reason)
    return {column: found for column, found in result.items() if column not in missing}, missing


def _floor(module: Any, hr: Features, labels: Array) -> float | None:
    try:
        return module.floor(hr, labels)
    except Unmeasurable:
        return None
