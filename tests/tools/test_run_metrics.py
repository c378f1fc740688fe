"""Curves that are reduced while a file is read, beside the same numbers held as a whole."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sr_dist.tools import run_metrics
from sr_dist.tools.plot import summarize
from sr_dist.tools.run_metrics import MOST, Curve, RunMetrics, read_rows

values = st.one_of(st.floats(-1e300, 1e300), st.just(math.nan), st.integers(-5, 5).map(float))


def curve_of(numbers) -> Curve:
    curve = Curve()
    for i, value in enumerate(numbers):
        curve.add(8 * i, value)
    return curve


def test_short_curves_are_the_rows():
    numbers = [math.nan if i % 7 == 3 else math.sin(i) for i in range(MOST - 1)]
    curve, images = curve_of(numbers), [8.0 * i for i in range(MOST - 1)]
    for points in (curve.means(), curve.extremes(), (images, curve.sample())):
        np.testing.assert_array_equal(points, (images, numbers))


@settings(max_examples=60, deadline=None)
@given(st.lists(values, max_size=300))
def test_long_curves_have_the_mean_and_the_extremes_of_groups_of_rows(numbers):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_metrics, "MOST", 16)
        curve = curve_of(numbers)
        size = 1
        while len(numbers) // size >= 16:
            size *= 2
        groups = [numbers[low : low + size] for low in range(0, len(numbers), size)]
        finite = [[value for value in group if math.isfinite(value)] for group in groups]
        images, means = curve.means()
        assert images == [8.0 * size * i for i in range(len(groups))]
        expected = [math.fsum(value / len(group) for value in group) if group else math.nan for group in finite]
        scale = [max(map(abs, group), default=0) for group in finite]
        for mean, target, largest in zip(means, expected, scale, strict=True):
            assert math.isnan(mean) == math.isnan(target) and not abs(mean - target) > 1e-12 * largest
        np.testing.assert_array_equal(curve.sample(), [group[0] for group in groups])
        if size > 1:
            pairs = [(min(group, default=math.nan), max(group, default=math.nan)) for group in finite]
            np.testing.assert_array_equal(np.reshape(curve.extremes()[1], (-1, 2)), np.reshape(pairs, (-1, 2)))
        assert curve.is_nonzero() == any(value for group in finite for value in group)


def test_a_run_of_100000_rows_takes_no_more_memory_than_one_of_10000():
    """Counted as numbers that are held: six for each of fewer than 8,192 points, and two for each of 4,096 rows."""
    for rows in (10_000, 100_000):
        curve = curve_of(map(float, range(rows)))
        assert len(curve._points) < MOST and len(curve._values) <= MOST // 2
        images, means = curve.means()
        assert MOST // 2 <= len(means) < MOST
        assert all(low < high for low, high in pairwise(images))


def test_scores_are_those_of_all_rows_with_the_first_step_of_the_best(monkeypatch):
    monkeypatch.setattr(run_metrics, "MOST", 4)
    run = RunMetrics("long")
    for step in range(1, 101):
        best = {"validation/psnr_y": 30.0 if step in (17, 60) else 20 + step / 100, "validation/lpips_alex": 1 / step}
        run.add({"step": step, "images": 8 * step, "images_per_second": float(step), **best})
    run.add({"step": 101, "images": 808, "validation/psnr_y": None})
    summary = summarize(run)
    assert (summary["step"], summary["images"]) == (101, 808)
    assert summary["scores"] == [
        {"name": "psnr_y", "best": 30.0, "step": 17, "last": 21.0},
        {"name": "lpips_alex", "best": 0.01, "step": 100, "last": 0.01},
    ]
    assert abs(summary["speed"] - 50) <= 32  # of rows that are evenly spaced


def test_rows_are_read_one_by_one(tmp_path):
    """The first row of a file whose end is damaged comes before the damage is noticed."""
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss/l1": 0.5}) + "\nno row\n")
    assert next(read_rows(tmp_path)) == {"step": 1, "loss/l1": 0.5}
