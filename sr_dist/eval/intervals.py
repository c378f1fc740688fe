"""How sure a number is: paired differences between methods, each image against itself, with 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations
from typing import Any


@cache
def student(n: int) -> float:
    """How many standard errors an interval of 95 % reaches, for a mean of n."""
    from scipy.stats import t

    return float(t.ppf(0.975, n - 1))


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
