"""How sure a number is: shares, and paired differences between methods, each image against itself, with 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np


@cache
def student(n: int) -> float:
    """How many standard errors an interval of 95 % reaches, for a mean of n."""
    from scipy.stats import t

    return float(t.ppf(0.975, n - 1))


def wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share; all that is possible where nothing was counted."""
    if not n:
        return 0.0, 1.0
    z, p = 1.959964, right / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max((middle - half) / (1 + z * z / n), 0.0), min((middle + half) / (1 + z * z / n), 1.0)  # rounding leads out of it


def differences(
    rows: Sequence[Mapping[str, Any]], methods: Sequence[str], columns: Sequence[str]
) -> dict[str, dict[str, dict[str, float] | None]]:
    """`{"b - a": {column: {mean, low, high, n}}}` for every two methods; None where some image has no value."""
    values = {
        (method, column): [row[column] for row in rows if row["method"] == method] for method in methods for column in columns
    }
    return {
        f"{b} - {a}": {column: _difference(values[a, column], values[b, column]) for column in columns}
        for a, b in combinations(methods, 2)
    }


def _difference(a: Sequence[float | None], b: Sequence[float | None]) -> dict[str, float] | None:
    apart = [y - x for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    n = len(apart)
    if n < len(a) or n < 2:
        return None
    mean = math.fsum(apart) / n
    error = math.sqrt(math.fsum((x - mean) ** 2 for x in apart) / (n - 1) / n)
    return {"mean": mean, "low": mean - student(n) * error, "high": mean + student(n) * error, "n": n}


def paired(first: np.ndarray, second: np.ndarray) -> dict[str, Any] | None:
    """Two accuracies on the same images, from who was right about which: {n, only_first, only_second, difference (second -
    first), low, high, p}. None where nothing is known."""
    n = len(first)
    if not n:
        return None
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    low, high = newcombe(both, only_second, only_first, neither)
    counts = {"n": n, "only_first": only_first, "only_second": only_second}
    return {
        **counts,
        "difference": (only_second - only_first) / n,
        "low": low,
        "high": high,
        "p": mcnemar(only_first, only_second),
    }


def mcnemar(only_first: int, only_second: int) -> float:
    """McNemar's test in its exact form, for counts of any size: were both right equally often, the images about which one of
    them alone is right would fall to either like a coin. The two-sided probability of so uneven a fall."""
    from scipy.stats import binomtest

    return float(binomtest(only_first, only_first + only_second).pvalue) if only_first + only_second else 1.0


def newcombe(both: int, only_a: int, only_b: int, neither: int) -> tuple[float, float]:
    """The 95 % interval of the difference a - b of two shares of the same things: Wilson's intervals of each, joined by how far
    they vary together (Newcombe 1998, Statistics in Medicine 17, p. 2635, method 10)."""
    n = both + only_a + only_b + neither
    a, b = (both + only_a) / n, (both + only_b) / n
    (low_a, high_a), (low_b, high_b) = wilson(both + only_a, n), wilson(both + only_b, n)
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    together = float(both * neither - only_a * only_b)
    together = max(together - n / 2, 0.0) if together > 0 else together
    phi = together / math.sqrt(margins) if margins else 0.0

    def reach(x: float, y: float) -> float:
        return math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0))

    return a - b - reach(a - low_a, high_b - b), a - b + reach(high_a - a, b - low_b)
