"""The share of one set of features that lies among another set's (Kynkäänniemi et al. 2019, arXiv 1904.06991, equations 1, 2).

A row lies among a set if it is within the ball of one of its rows, which reaches to that row's k-th nearest neighbour in its
own set. Squared distances are |x|^2 + |y|^2 - 2 xy in float64, compared up to the rounding of these sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import numpy as np

from sr_dist.core import ranks
from sr_dist.evaluation.distances.features import Estimate, Features, Unmeasurable
from sr_dist.evaluation.distances.frechet import Array
from sr_dist.evaluation.intervals import wilson

K = 3  # the paper's
ROUNDING = 1e-12  # of |x|^2 + |y|^2
AT_ONCE = 2**24  # distances that are in memory at once


def share_among(queries: Features, reference: Features) -> Estimate:
    """The interval is Wilson's, of the share of queries; the reference is taken as it is. All ranks must call."""
    if reference.count() <= K:
        raise Unmeasurable(f"it needs more than {K} images")
    rows, reach = reference.gathered()[0], radii(reference)
    inside = sum(int((squared <= reach + rounding).any(1).sum()) for squared, rounding in _blocks(queries.rows, rows))
    total, n = sum(ranks.all_gather(inside)), queries.count()
    return Estimate(total / n, n, *wilson(total, n))


@lru_cache(maxsize=4)  # those of HR are asked for once for each method
def radii(features: Features) -> Array:
    """The squared distance of each of all ranks' rows to its k-th nearest other. All ranks must call."""
    rows, _ = features.gathered()
    own = [np.partition(squared, K, axis=1)[:, K] for squared, _ in _blocks(features.rows, rows)]  # the nearest is itself
    of_rank = np.concatenate([np.zeros(0), *own])
    return replace(features, rows=of_rank[:, None]).gathered()[0][:, 0]


def _blocks(x: Array, y: Array) -> Iterator[tuple[Array, Array]]:
    """(squared distances of a block of x to all of y, how far rounding may move them)."""
    y = y.astype(np.float64)
    norms, count = np.square(y).sum(1), max(AT_ONCE // len(y), 1)
    for start in range(0, len(x), count):
        block = x[start : start + count].astype(np.float64)
        sums = np.square(block).sum(1)[:, None] + norms
        yield sums - 2 * block @ y.T, ROUNDING * sums
