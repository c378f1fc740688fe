"""One pass over the images: every method restores, every metric scores, on all ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sr_dist.core import ranks
from sr_dist.core.errors import UserError
from sr_dist.data.images import Batches, Scored, load, numbers_of_this_rank
from sr_dist.evaluation.baselines import Upscale
from sr_dist.evaluation.classifiers.classifier_answers import Opinions, ask_all, gathered, share, with_opinions
from sr_dist.evaluation.distances.reference_cache import References
from sr_dist.evaluation.distances.set_distances import HR, Distances, Found, distances
from sr_dist.evaluation.metric_set import Metrics
from sr_dist.evaluation.partial_results import Abandoned, Parts
from sr_dist.evaluation.protocol import Protocol

Row = dict[str, Any]  # image, method, and a value per metric; None where it cannot be computed


@dataclass(frozen=True)
class Scores:
    """Rows of all images and methods, each method's in the order of the images; distances between sets by column; answers by
    classifier, with those columns that are shares of them."""

    rows: list[Row]
    better: dict[str, str]  # column -> whether "higher" or "lower" is better
    distances: dict[str, Distances]
    missing: dict[str, str]  # column or method/column -> why there is none
    opinions: dict[str, Opinions] = field(default_factory=dict)
    shares: dict[str, dict[str, float | None]] = field(default_factory=dict)  # column -> method -> value

    def means(self, method: str) -> dict[str, float | None]:
        """Mean over images, None where some image has no value; of sets, the distance."""
        rows = [row for row in self.rows if row["method"] == method]
        return {column: self._mean(column, method, rows) for column in self.better}

    def _mean(self, column: str, method: str, rows: list[Row]) -> float | None:
        if column in self.distances:
            estimate = self.distances[column].methods.get(method)
            return estimate.value if estimate else None
        if column in self.shares:
            return self.shares[column].get(method)
        values = [row[column] for row in rows if row.get(column) is not None]
        return math.fsum(values) / len(values) if values and len(values) == len(rows) else None


@torch.no_grad()
def score(
    methods: Mapping[str, Upscale], batches: Batches, protocol: Protocol, device: torch.device, metrics: Metrics,
    workers: int = 0, give_up: Callable[[], bool] = lambda: False,
    parts: Parts | None = None, references: References | None = None,
) -> Scores:  # fmt: skip
    """The same scores on every rank; what classifiers say of an image is in the rows of the first alone. All ranks must call.
    `parts` may hold some of the batches already."""
    parts, mine = parts or Parts(), numbers_of_this_rank(batches)
    kept = {view: references.load(view) if references else None for view in metrics.views}
    of_hr = [view for view in metrics.views if kept[view] is None]
    owed, problem = parts.missing(mine, [f"{view}/{HR}" for view in of_hr]), ""
    _announce(len(owed), len(batches))
    try:
        for number, batch in zip(owed, load(batches, owed, workers), strict=True):
            if give_up():
                break
            parts.put(number, *_scored(methods, batch, protocol, device, metrics, of_hr))
    except UserError as mistake:  # of this rank's images; the others would wait for it
        problem = str(mistake)
    _agree(problem, give_up())
    facts = [fact for part in ranks.gather([parts.facts(number) for number in mine]) for fact in part]
    labels = np.array([label for fact in facts for label in fact["labels"]])
    found = Found(batches, parts, mine, device)
    between, missing = distances(found, list(methods), metrics, labels, kept, references)
    opinions, unsaid = gathered(metrics.judges, list(methods), parts, mine, batches.images.names)
    rows = with_opinions((row for fact in facts for row in fact["rows"]), metrics.judges, opinions)
    shares = {
        column: {method: share(answers, first) for method, answers in opinions[judge.name].items()}
        for judge in metrics.judges for column, first in judge.columns.items()
    }  # fmt: skip
    return Scores(rows, metrics.better, between, {**metrics.missing, **missing, **unsaid}, opinions, shares)


def _announce(owed: int, batches: int) -> None:
    """Says how much an evaluation that was killed has left."""
    there = batches - sum(ranks.gather(owed))
    if ranks.is_first() and there:
        print(f"continuing: {there} of {batches} batches are there", flush=True)


def _agree(problem: str, abandoned: bool) -> None:
    """All ranks stop for what stops one."""
    answers = ranks.gather((problem, abandoned))
    for problem, _ in answers:
        if problem:
            raise UserError(problem)
    if any(abandoned for _, abandoned in answers):
        raise Abandoned


def _scored(
    methods: Mapping[str, Upscale], batch: Scored, protocol: Protocol, device: torch.device, metrics: Metrics, of_hr: list[str]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What is kept of a batch: rows and labels, features of HR and of every method, and what classifiers say of them."""
    lr, hr = batch.lr.to(device), batch.hr.to(device)
    rows: list[Row] = []
    arrays = {f"{view}/{HR}": _features(metrics, view, hr) for view in of_hr}
    arrays |= ask_all(metrics.judges, HR, hr, protocol, batch)
    for number, (name, upscale) in enumerate(methods.items(), HR + 1):
        sr = upscale(lr)
        columns: dict[str, list[float]] = {}
        for metric in metrics.per_image:
            columns.update(metric.per_image(sr, hr, protocol, batch.grey))
        for i, image in enumerate(batch.names):
            values = {column: (value[i] if math.isfinite(value[i]) else None) for column, value in columns.items()}
            rows.append({"image": image, "method": name, **values})
        arrays |= {f"{view}/{number}": _features(metrics, view, sr) for view in metrics.views}
        arrays |= ask_all(metrics.judges, number, sr, protocol, batch)
    return {"rows": rows, "labels": batch.label.tolist()}, arrays


def _features(metrics: Metrics, view: str, images: Tensor) -> np.ndarray:
    """(B x patches, width); nan for images that are not finite."""
    rows = getattr(metrics.extractor, view)(images.nan_to_num())
    finite = images.isfinite().flatten(1).all(1).cpu().numpy()
    rows[~np.repeat(finite, len(rows) // len(images))] = np.nan
    return rows
