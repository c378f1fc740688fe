"""Features of images, distributed over ranks, and the distances between two sets of them.

Each rank holds the rows of its own images, without padding. Numbers of rows may differ, and a rank may have none. All ranks
must call all functions of this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import TypeVar

import numpy as np
import torch

from sr_dist.core import ranks
from sr_dist.evaluation.distances import frechet
from sr_dist.evaluation.distances.frechet import Array, Moments
from sr_dist.evaluation.intervals import student

FOLDS = 10  # of the jackknife
SEED = 0  # of the random order in which images are split into folds, halves and blocks
Result = TypeVar("Result")


class Unmeasurable(Exception):
    """A distance cannot be computed for these images; the text is the reason."""


@dataclass(frozen=True, eq=False)
class Features:
    """This rank's rows and the image of each row. Images are numbered from 0 to `total` - 1 over all ranks."""

    rows: Array  # (n, width) float32
    images: Array  # (n,) int64
    total: int
    device: torch.device  # for communication between ranks
    known: Moments | None = None  # of all ranks' rows, if they are already known

    @property
    def width(self) -> int:
        return self.rows.shape[1]

    def of(self, selected: Array) -> Features:
        """The rows of some images, given as (total,) bool."""
        local = selected[self.images]
        return Features(self.rows[local], self.images[local], self.total, self.device)

    def count(self) -> int:
        return sum(ranks.all_gather(len(self.rows)))

    def moments(self) -> Moments:
        """Takes two all-reduces: of the sums (small), then of the scatter about the common mean."""
        if self.known:
            return self.known
        rows = self.rows.astype(np.float64)
        sums = self._total(np.append(rows.sum(0), len(rows)))
        mean = sums[:-1] / max(sums[-1], 1)
        rows -= mean
        return Moments(int(sums[-1]), mean, self._total(rows.T @ rows))

    def gathered(self) -> tuple[Array, Array]:
        """All ranks' rows and their images, on every rank, in the order of the images."""
        parts = ranks.all_gather((self.rows, self.images))
        rows, images = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        order = np.argsort(images, kind="stable")
        return rows[order], images[order]

    def _total(self, values: Array) -> Array:
        tensor = torch.from_numpy(values)
        return ranks.all_reduce_sum(tensor.to(self.device)).cpu().numpy() if ranks.size() > 1 else values


@dataclass(frozen=True)
class Estimate:
    """A distance between two sets, with its uncertainty."""

    value: float
    n: int  # rows of each set
    low: float | None = None  # 95 % interval
    high: float | None = None
    standard_error: float | None = None


def random_groups(features: Features, count: int) -> list[Array]:
    """Splits the images that have rows into `count` groups of about equal size (fewer if there are fewer images).

    The split is always the same. Each group is (total,) bool.
    """
    present = np.unique(np.concatenate(ranks.all_gather(np.unique(features.images))))
    order = np.random.default_rng(SEED).permutation(present)
    return [np.isin(np.arange(features.total), order[i::count]) for i in range(min(count, len(order)))]


def run_on_ranks(tasks: Iterable[Callable[[], Result]]) -> list[Result]:
    """The results of independent tasks, on all ranks. Each rank runs one task of a round.

    A round's tasks are created before any of them starts, because creating one may communicate; then they run in parallel.
    """
    remaining, results = iter(tasks), []
    while tasks_of_round := list(islice(remaining, ranks.size())):
        local = tasks_of_round[ranks.rank() : ranks.rank() + 1]
        results += [result for part in ranks.all_gather([task() for task in local]) for result in part]
    return results


def frechet_distances(pairs: Iterable[tuple[Features, Features]]) -> list[float]:
    """The Fréchet distance of each pair."""
    return run_on_ranks(_frechet_task(a, b) for a, b in pairs)


def jackknifed(a: Features, b: Features) -> Estimate:
    """The Fréchet distance with an interval.

    The jackknife leaves out a tenth of the images at a time, with their patches and their partners in the other set.
    """
    folds = random_groups(a, FOLDS)
    value, *others = run_on_ranks(chain([_frechet_task(a, b)], _leave_one_out(a, b, folds) if len(folds) > 2 else []))
    if not others:
        return Estimate(value, a.count())
    error = float(np.sqrt((len(others) - 1) / len(others) * np.square(np.array(others) - np.mean(others)).sum()))
    reach = error * student(len(others))
    return Estimate(value, a.count(), max(value - reach, 0.0), value + reach, error)


def halves(features: Features) -> tuple[Features, Features]:
    """Two sets with the same number of rows, of different images. Their distance is the floor: that of HR from itself."""
    first, second = (features.of(half) for half in [*random_groups(features, 2), np.zeros(features.total, bool)][:2])
    size = min(first.count(), second.count())
    if size < 2:
        raise Unmeasurable("halves of fewer than 4 images have no spread")
    return _first_rows(first, size), _first_rows(second, size)


def _first_rows(features: Features, most: int) -> Features:
    before = sum(ranks.all_gather(len(features.rows))[: ranks.rank()])
    keep = slice(max(most - before, 0))
    return Features(features.rows[keep], features.images[keep], features.total, features.device)


def _frechet_task(a: Features, b: Features) -> Callable[[], float]:
    if a.count() < a.width:
        return partial(frechet.from_rows, a.gathered()[0], b.gathered()[0])
    return partial(frechet.from_moments, a.moments(), b.moments())


def _leave_one_out(a: Features, b: Features, folds: list[Array]) -> Iterator[Callable[[], float]]:
    if a.count() < a.width:
        (x, images), (y, _) = a.gathered(), b.gathered()
        for fold in folds:
            keep = ~fold[images]
            yield partial(frechet.from_rows, x[keep], y[keep])
    else:
        whole_a, whole_b = a.moments(), b.moments()
        for fold in folds:
            yield partial(frechet.from_moments, whole_a - a.of(fold).moments(), whole_b - b.of(fold).moments())
