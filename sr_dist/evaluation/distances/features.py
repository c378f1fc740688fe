"""Features of images, spread over ranks, and what is computed of two such sets together.

Every rank holds the rows of its own images and nothing is padded, so that counts may be unequal and a rank may hold none.
All functions here must be called by all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy as np
import torch

from sr_dist.core import ranks
from sr_dist.evaluation.distances import frechet
from sr_dist.evaluation.distances.frechet import Array, Moments
from sr_dist.evaluation.intervals import student

FOLDS = 10  # of the jackknife
SEED = 0  # of the order in which images are dealt to folds, halves and blocks


class Unmeasurable(Exception):
    """Why a distance cannot be computed for these images."""


@dataclass(frozen=True)
class Features:
    """This rank's rows, and of which image each one is; images are numbered from 0 to `total` - 1 through all ranks."""

    rows: Array  # (n, width) float32
    images: Array  # (n,) int64
    total: int
    device: torch.device  # that ranks talk through
    known: Moments | None = None  # of all ranks' rows, where they need not be computed

    @property
    def width(self) -> int:
        return self.rows.shape[1]

    def of(self, chosen: Array) -> Features:
        """Those of some images, given as (total,) bool."""
        mine = chosen[self.images]
        return Features(self.rows[mine], self.images[mine], self.total, self.device)

    def count(self) -> int:
        return sum(ranks.gather(len(self.rows)))

    def moments(self) -> Moments:
        """Two all-reduces: of the sums (small), then of the scatter about the mean that all share."""
        if self.known:
            return self.known
        rows = self.rows.astype(np.float64)
        sums = self._total(np.append(rows.sum(0), len(rows)))
        mean = sums[:-1] / max(sums[-1], 1)
        rows -= mean
        return Moments(int(sums[-1]), mean, self._total(rows.T @ rows))

    def gathered(self) -> tuple[Array, Array]:
        """Everybody's rows and their images, on every rank, in the order of the images."""
        parts = ranks.gather((self.rows, self.images))
        rows, images = (np.concatenate(things) for things in zip(*parts, strict=True))
        order = np.argsort(images, kind="stable")
        return rows[order], images[order]

    def _total(self, values: Array) -> Array:
        tensor = torch.from_numpy(values)
        return ranks.total(tensor.to(self.device)).cpu().numpy() if ranks.size() > 1 else values


@dataclass(frozen=True)
class Estimate:
    """A distance between two sets, and how far it would be from itself on other images of the kind."""

    value: float
    n: int  # rows of each set
    low: float | None = None  # 95 % interval
    high: float | None = None
    standard_error: float | None = None


def dealt(features: Features, count: int) -> list[Array]:
    """The images that have rows, dealt into so many parts of like size (fewer where there are fewer images), always in the
    same way; each part as (total,) bool."""
    present = np.unique(np.concatenate(ranks.gather(np.unique(features.images))))
    order = np.random.default_rng(SEED).permutation(present)
    return [np.isin(np.arange(features.total), order[i::count]) for i in range(min(count, len(order)))]


def spread(tasks: Iterable[Callable[[], Any]]) -> list[Any]:
    """The results of tasks that need no other rank, each done by one of them, on all ranks. What making a task needs of
    others happens before any of a round is begun, so that they run at one time."""
    tasks, found = iter(tasks), []
    while mine := [task if i == ranks.rank() else None for i, task in enumerate(islice(tasks, ranks.size()))]:
        result = next((task() for task in mine if task), None)
        found += ranks.gather(result)[: len(mine)]
    return found


def distances(pairs: Iterable[tuple[Features, Features]]) -> list[float]:
    """The Fréchet distance of each pair."""
    return spread(_task(a, b) for a, b in pairs)


def jackknifed(a: Features, b: Features) -> Estimate:
    """The Fréchet distance with an interval: what becomes of it when a tenth of the images, and with them their patches and
    their partners in the other set, are left out."""
    folds = dealt(a, FOLDS)
    value, *others = spread(chain([_task(a, b)], _leaving_out(a, b, folds) if len(folds) > 2 else []))
    if not others:
        return Estimate(value, a.count())
    error = float(np.sqrt((len(others) - 1) / len(others) * np.square(np.array(others) - np.mean(others)).sum()))
    reach = error * student(len(others))
    return Estimate(value, a.count(), max(value - reach, 0.0), value + reach, error)


def halves(features: Features) -> tuple[Features, Features]:
    """Two sets of equally many rows, of unlike images: what is between them is there without any restoring."""
    first, second = (features.of(half) for half in [*dealt(features, 2), np.zeros(features.total, bool)][:2])
    size = min(first.count(), second.count())
    if size < 2:
        raise Unmeasurable("halves of fewer than 4 images have no spread")
    return _first_rows(first, size), _first_rows(second, size)


def _first_rows(features: Features, most: int) -> Features:
    before = sum(ranks.gather(len(features.rows))[: ranks.rank()])
    keep = slice(max(most - before, 0))
    return Features(features.rows[keep], features.images[keep], features.total, features.device)


def _task(a: Features, b: Features) -> Callable[[], float]:
    if a.count() < a.width:
        return partial(frechet.from_rows, a.gathered()[0], b.gathered()[0])
    return partial(frechet.from_moments, a.moments(), b.moments())


def _leaving_out(a: Features, b: Features, folds: list[Array]) -> Iterator[Callable[[], float]]:
    if a.count() < a.width:
        (x, images), (y, _) = a.gathered(), b.gathered()
        for fold in folds:
            keep = ~fold[images]
            yield partial(frechet.from_rows, x[keep], y[keep])
    else:
        whole_a, whole_b = a.moments(), b.moments()
        for fold in folds:
            yield partial(frechet.from_moments, whole_a - a.of(fold).moments(), whole_b - b.of(fold).moments())
