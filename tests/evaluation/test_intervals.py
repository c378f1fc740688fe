"""Shares on the same images: McNemar's test and Newcombe's interval, by hand and beside scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sr_dist.evaluation.intervals import accuracy_difference, mcnemar, newcombe, wilson

counts = st.integers(0, 40)


def test_mcnemars_test_by_hand():
    """Five images, all won: 2 / 2^5. Two lost and ten won: 2 (1 + 12 + 66) / 2^12. As many lost as won: nothing is shown."""
    assert mcnemar(0, 5) == mcnemar(5, 0) == pytest.approx(2 / 32)
    assert mcnemar(2, 10) == pytest.approx(2 * (1 + 12 + 66) / 4096)
    assert mcnemar(7, 7) == mcnemar(0, 0) == 1


@given(counts, counts)
def test_mcnemars_test_is_the_exact_one_for_counts_of_any_size(lost, won):
    tail = sum(math.comb(lost + won, k) for k in range(min(lost, won) + 1)) / 2 ** (lost + won)
    assert mcnemar(lost, won) == pytest.approx(min(1, 2 * tail), rel=1e-9)


def test_for_large_counts_it_comes_to_the_usual_chi_square():
    corrected = (abs(4200 - 4000) - 1) ** 2 / 8200
    assert mcnemar(4000, 4200) == pytest.approx(stats.chi2.sf(corrected, 1), rel=0.01)


def test_where_nothing_differs_the_interval_is_as_wide_as_ignorance():
    """Ten images, both always right: Wilson's interval of 10 of 10 is [10 / (10 + z^2), 1]; so large may a difference be."""
    width = 1 - 10 / (10 + 1.959964**2)
    assert newcombe(10, 0, 0, 0) == pytest.approx((-width, width))


def by_the_paper(both, only_a, only_b, neither):
    """Method 10 written out: e, f, g, h are the cells, and phi is Pearson's with a correction of n / 2 where it is positive."""
    e, f, g, h = both, only_a, only_b, neither
    n = e + f + g + h
    (l2, u2), (l3, u3) = (stats.binomtest(k, n).proportion_ci(method="wilson") for k in (e + f, e + g))
    top, below = e * h - f * g, (e + f) * (g + h) * (e + g) * (f + h)
    top = top - n / 2 if top > n / 2 else 0 if top >= 0 else top
    phi = top / below**0.5 if below else 0
    p2, p3 = (e + f) / n, (e + g) / n
    lower = (p2 - l2) ** 2 - 2 * phi * (p2 - l2) * (u3 - p3) + (u3 - p3) ** 2
    upper = (p3 - l3) ** 2 - 2 * phi * (p3 - l3) * (u2 - p2) + (u2 - p2) ** 2
    return p2 - p3 - max(lower, 0) ** 0.5, p2 - p3 + max(upper, 0) ** 0.5


@given(counts, counts, counts, counts)
def test_newcombes_interval_is_the_papers(both, only_a, only_b, neither):
    if both + only_a + only_b + neither == 0:
        return
    low, high = newcombe(both, only_a, only_b, neither)
    assert (low, high) == pytest.approx(by_the_paper(both, only_a, only_b, neither), abs=1e-6)
    assert low >= -1 - 1e-9 and high <= 1 + 1e-9
    assert newcombe(both, only_b, only_a, neither) == pytest.approx((-high, -low))  # with the methods exchanged


def test_newcombes_interval_holds_the_truth_as_often_as_it_says():
    """3,000 times 80 images, of which 85 % are told apart before and 80 % after, mostly the same ones."""
    cells = [0.77, 0.08, 0.03, 0.12]
    drawn = np.random.default_rng(0).multinomial(80, cells, 3000)
    held = [low <= 0.05 <= high for low, high in (newcombe(*map(int, row)) for row in drawn)]
    assert 0.935 <= np.mean(held) <= 0.975


def test_two_methods_on_the_same_images():
    first, second = np.array([1, 1, 1, 0, 0, 1, 1, 1], bool), np.array([1, 0, 1, 1, 0, 0, 0, 1], bool)
    result = accuracy_difference(first, second)
    assert {"n": 8, "only_first": 3, "only_second": 1, "difference": -0.25, "p": pytest.approx(10 / 16)}.items() <= result.items()
    assert result["low"] < -0.25 < result["high"]
    assert accuracy_difference(first[:0], second[:0]) is None


def test_a_share_of_nothing_may_be_anything():
    assert wilson(0, 0) == (0, 1)


def test_a_share_is_never_below_nothing_or_above_all():
    """Of 0 of n the interval begins at 0, of n of n it ends at 1, and no rounding leads out of that."""
    for n in range(1, 300):
        (low, _), (_, high) = wilson(0, n), wilson(n, n)
        assert 0 <= low < 1e-15 and 1 - 1e-15 < high <= 1, n
