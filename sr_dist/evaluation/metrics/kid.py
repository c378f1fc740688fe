"""Kernel Inception distance: the unbiased squared MMD under the kernel (x'y / width + 1)^3.

The images are split into blocks of at most 1000, which are averaged; up to 1000 images it is clean-fid's value. The standard
error is the jackknife's, which leaves out one image and its partner at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from math import ceil, sqrt

import numpy as np

from sr_dist.evaluation.distances.features import Estimate, Features, halves, random_groups, run_on_ranks
from sr_dist.evaluation.distances.frechet import Array
from sr_dist.evaluation.intervals import student

BETTER = {"kid": "lower"}
NEEDS = {"kid": "inception-2015-12-05.pt"}
DIGITS = {"kid": 5}
VIEW = "whole"
BLOCK = 1000

Value = tuple[float, float | None]  # with its variance


def of_sets(sr: Features, hr: Features, labels: Array) -> Estimate:
    blocks = run_on_ranks(_block_tasks(sr, hr))
    value, n = sum(value for value, _ in blocks) / len(blocks), hr.count()
    variances = [variance for _, variance in blocks if variance is not None]
    if len(variances) < len(blocks):
        return Estimate(value, n)
    error = sqrt(sum(variances)) / len(blocks)
    return Estimate(value, n, value - student(n) * error, value + student(n) * error, error)


def floor(hr: Features, labels: Array) -> float:
    a, b = halves(hr)
    return squared_mmd(a.gathered()[0][:BLOCK], b.gathered()[0][:BLOCK])[0]


def _block_tasks(sr: Features, hr: Features) -> Iterator[Callable[[], Value]]:
    for block in random_groups(hr, ceil(hr.count() / BLOCK)):
        yield partial(squared_mmd, sr.of(block).gathered()[0], hr.of(block).gathered()[0])


def squared_mmd(x: Array, y: Array) -> Value:
    """The value for two sets of m rows, and its variance; None for fewer than 3 rows."""
    m = len(x)
    x, y = x.astype(np.float64), y.astype(np.float64)
    xx, yy, xy = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    within = xx.sum(1) - xx.diagonal() + yy.sum(1) - yy.diagonal()  # (m,): a row with the others of its set
    across = xy.sum(0) + xy.sum(1) - xy.diagonal()  # (m,): all pairs that have the row or its partner
    value = within.sum() / (m * (m - 1)) - 2 * xy.sum() / m**2
    if m < 3:
        return float(value), None
    without = (within.sum() - 2 * within) / ((m - 1) * (m - 2)) - 2 * (xy.sum() - across) / (m - 1) ** 2
    return float(value), float((m - 1) / m * np.square(without - without.mean()).sum())


def _kernel(x: Array, y: Array) -> Array:
    return (x @ y.T / x.shape[1] + 1) ** 3
