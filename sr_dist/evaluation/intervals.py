"""95 % intervals: of shares, and of paired differences between methods on the same images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np

Differences = dict[str, dict[str, dict[str, float] | None]]  # pair -> column -> mean, low, high, n


@cache
def student(n: float) -> float:
    """Half the width of a 95 % interval of a mean of n values, in standard errors (Student's t)."""
    from scipy.stats import t  # spares 0.5 s at the start

    return float(t.ppf(0.975, n - 1))


def mean_interval(values: Sequence[float]) -> tuple[float, float, float] | None:
    """(mean, low, high); None for fewer than two values."""
    n = len(values)
    if n < 2:
        return None
    mean = math.fsum(values) / n
    error = math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (n - 1) / n)
    return mean, mean - student(n) * error, mean + student(n) * error


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share; (0, 1) without images."""
    if not n:
        return 0.0, 1.0
    z, p = 1.959964, correct / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max((middle - half) / (1 + z * z / n), 0.0), min((middle + half) / (1 + z * z / n), 1.0)  # rounding can leave [0, 1]


def differences(
    rows: Sequence[Mapping[str, Any]], methods: Sequence[str], columns: Sequence[str], against: str | None = None
) -> Differences:
    """`{"b - a": {column: {mean, low, high, n}}}` for every two methods; None where an image has no value.

    `against` is subtracted from every other method; without it, an earlier method from a later one.
    """
    values = {
        (method, column): [row[column] for row in rows if row["method"] == method] for method in methods for column in columns
    }
    return {
        f"{b} - {a}": {column: _difference(values[a, column], values[b, column]) for column in columns}
        for a, b in oriented(methods, against)
    }


def oriented(methods: Sequence[str], against: str | None) -> list[tuple[str, str]]:
    """Every two methods; the first one of each is subtracted."""
    return [(b, a) if b == against else (a, b) for a, b in combinations(methods, 2)]


def mean_of_sets(sets: Sequence[Mapping[str, float] | None]) -> dict[str, float] | None:
    """The mean over sets of mean differences, each set counting alike. The degrees of freedom are Welch and Satterthwaite's."""
    known = [one for one in sets if one is not None]
    if not known or len(known) < len(sets):
        return None
    mean = math.fsum(one["mean"] for one in known) / len(known)
    squares = [((one["high"] - one["low"]) / 2 / student(int(one["n"]))) ** 2 for one in known]
    total = math.fsum(squares)
    n = sum(int(one["n"]) for one in known)
    if total == 0:
        return {"mean": mean, "low": mean, "high": mean, "n": n}
    freedom = total**2 / math.fsum(square**2 / (one["n"] - 1) for square, one in zip(squares, known, strict=True))
    half = student(freedom + 1) * math.sqrt(total) / len(known)
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def _difference(a: Sequence[float | None], b: Sequence[float | None]) -> dict[str, float] | None:
    pairs = [y - x for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    known = mean_interval(pairs) if len(pairs) == len(a) else None
    return {**dict(zip(("mean", "low", "high"), known, strict=True)), "n": len(pairs)} if known else None


def accuracy_difference(first: np.ndarray, second: np.ndarray) -> dict[str, Any] | None:
    """Compares two accuracies on the same images.

    `first` and `second` say for each image whether the answer is correct, (n,) bool. Returns {n, only_first, only_second,
    difference (second - first), low, high, p}, or None without images.
    """
    n = len(first)
    if not n:
        return None
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    low, high = newcombe(both, only_second, only_first, neither)
    return {
        "n": n,
        "only_first": only_first,
        "only_second": only_second,
        "difference": (only_second - only_first) / n,
        "low": low,
        "high": high,
        "p": mcnemar(only_first, only_second),
    }


def mcnemar(only_first: int, only_second: int) -> float:
    """The two-sided p-value of McNemar's exact test.

    If both are correct equally often, each image on which only one of them is correct is a fair coin toss.
    """
    from scipy.stats import binomtest  # spares 0.5 s at the start

    return float(binomtest(only_first, only_first + only_second).pvalue) if only_first + only_second else 1.0


def newcombe(both: int, only_a: int, only_b: int, neither: int) -> tuple[float, float]:
    """The 95 % interval of the difference a - b of two shares of the same images.

    Combines Wilson's interval of each with the correlation of the two (Newcombe 1998, Statistics in Medicine 17, p. 2635,
    method 10).
    """
    n = both + only_a + only_b + neither
    a, b = (both + only_a) / n, (both + only_b) / n
    (low_a, high_a), (low_b, high_b) = wilson(both + only_a, n), wilson(both + only_b, n)
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    covariance = float(both * neither - only_a * only_b)
    covariance = max(covariance - n / 2, 0.0) if covariance > 0 else covariance
    phi = covariance / math.sqrt(margins) if margins else 0.0

    def reach(x: float, y: float) -> float:
        return math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0))

    return a - b - reach(a - low_a, high_b - b), a - b + reach(high_a - a, b - low_b)
