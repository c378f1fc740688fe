"""Kernel Inception distance: the unbiased squared MMD under the kernel (x'y / width + 1)^3.

The images are dealt into blocks of at most 1000, which are averaged; up to 1000 images it is clean-fid's value. The
standard error is the jackknife's, an image and its partner left out together.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import ceil, sqrt

import numpy as np

from sr_dist.evaluation.distances.features import Estimate, Features, dealt, halves, spread
from sr_dist.evaluation.distances.frechet import Array
from sr_dist.evaluation.intervals import student

BETTER = {"kid": "lower"}
NEEDS = {"kid": "inception-2015-12-05.pt"}
VIEW = "whole"
BLOCK = 1000


def of_sets(sr: Features, hr: Features, labels: Array) -> Estimate:
    found = spread(_blocks(sr, hr))
    value, n = sum(value for value, _ in found) / len(found), hr.count()
    if any(variance is None for _, variance in found):
        return Estimate(value, n)
    error = sqrt(sum(variance for _, variance in found)) / len(found)
    return Estimate(value, n, value - student(n) * error, value + student(n) * error, error)


def floor(hr: Features, labels: Array) -> float:
    a, b = halves(hr)
    return squared_mmd(a.gathered()[0][:BLOCK], b.gathered()[0][:BLOCK])[0]


def _blocks(sr: Features, hr: Features) -> Iterator:
    for block in dealt(hr, ceil(hr.count() / BLOCK)):
        yield partial(squared_mmd, sr.of(block).gathered()[0], hr.of(block).gathered()[0])


def squared_mmd(x: Array, y: Array) -> tuple[float, float | None]:
    """The value of two sets of m rows, and its variance; None where too few are left to leave one out."""
    m = len(x)
    xx, yy, xy = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    within = xx.sum(1) - xx.diagonal() + yy.sum(1) - yy.diagonal()  # every row with the others of its set
    across = xy.sum(0) + xy.sum(1) - xy.diagonal()  # all pairs that go with a row or its partner
    value = within.sum() / (m * (m - 1)) - 2 * xy.sum() / m**2
    if m < 3:
        return float(value), None
    without = (within.sum() - 2 * within) / ((m - 1) * (m - 2)) - 2 * (xy.sum() - across) / (m - 1) ** 2
    return float(value), float((m - 1) / m * np.square(without - without.mean()).sum())


def _kernel(x: Array, y: Array) -> Array:
    return (x.astype(np.float64) @ y.astype(np.float64).T / x.shape[1] + 1) ** 3
