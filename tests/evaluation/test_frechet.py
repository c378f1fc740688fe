"""The Fréchet distance beside a naive transcription, scipy, clean-fid and numbers worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from sr_dist.core.errors import UserError
from sr_dist.evaluation.distances import frechet
from sr_dist.evaluation.distances.frechet import from_moments, from_rows, moments


def rows(n, width, seed, offset=0.0, steep=0.0):
    """Correlated features; with `steep`, column i is exp(-steep i) as wide as the first."""
    draw = np.random.default_rng(seed)
    mixed = draw.normal(size=(n, width)) @ (np.eye(width) + 0.3 * np.random.default_rng(99).normal(size=(width, width)))
    return mixed * np.exp(-steep * np.arange(width)) + offset


def naive(a, b):
    S1, S2, apart = np.cov(a, rowvar=False), np.cov(b, rowvar=False), a.mean(0) - b.mean(0)
    return apart @ apart + np.trace(S1 + S2 - 2 * sqrtm(S1 @ S2).real)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_moments_are_numpys(offset):
    x = rows(500, 12, 1, offset)
    result = moments(x)
    assert result.n == 500
    np.testing.assert_allclose(result.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(result.covariance, np.cov(x, rowvar=False), rtol=1e-10, atol=1e-12)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(lambda sizes: sum(sizes) > 3), st.sampled_from([0.0, 500.0]))
def test_moments_of_parts_add_up_and_come_off_again(sizes, offset):
    x = rows(sum(sizes), 4, 3, offset)
    parts = [moments(part) for part in np.split(x, np.cumsum(sizes)[:-1])]
    whole = moments(x)
    together = parts[0]
    for part in parts[1:]:
        if together.n + part.n:
            together = together + part
    np.testing.assert_allclose(together.scatter, whole.scatter, rtol=1e-9, atol=1e-9)
    if whole.n - parts[-1].n > 1:
        rest, expected = whole - parts[-1], moments(x[: len(x) - sizes[-1]])
        assert rest.n == expected.n
        np.testing.assert_allclose(rest.mean, expected.mean, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(rest.scatter, expected.scatter, rtol=1e-8, atol=1e-8)


def test_two_sets_of_one_column_by_hand():
    """Means 1 and 6, variances 2 and 18: 25 + 2 + 18 - 2 sqrt(36) = 33."""
    a, b = np.array([[0.0], [2.0]]), np.array([[3.0], [9.0]])
    assert from_rows(a, b) == pytest.approx(33)
    assert from_moments(moments(a), moments(b)) == pytest.approx(33)


@pytest.mark.parametrize(("n", "width"), [(200, 5), (300, 40)])
def test_it_is_the_naive_matrix_root(n, width):
    a, b = rows(n, width, 1), rows(n, width, 2) * 1.3 + 0.2
    assert from_moments(moments(a), moments(b)) == pytest.approx(naive(a, b), rel=1e-9)
    assert from_rows(a, b) == pytest.approx(naive(a, b), rel=1e-9)


@pytest.mark.parametrize(("n", "width"), [(10, 40), (39, 40), (2, 5)])
def test_for_fewer_rows_than_columns_both_ways_agree(n, width):
    a, b = rows(n, width, 1), rows(n, width, 2) + 0.2
    assert from_rows(a, b) == pytest.approx(from_moments(moments(a), moments(b)), rel=1e-6)


def test_it_is_clean_fids():
    from cleanfid.fid import frechet_distance

    a, b = rows(3000, 64, 1), rows(3000, 64, 2) * 1.1
    theirs = frechet_distance(a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False))
    assert from_moments(moments(a), moments(b)) == pytest.approx(theirs, rel=1e-8)


@pytest.mark.parametrize(("n", "width", "steep"), [(200, 32, 0.0), (200, 32, 0.2), (200, 32, 1.0), (20, 64, 0.5), (64, 64, 0.0)])
def test_the_distance_of_a_set_from_itself_is_zero_and_never_less(n, width, steep):
    """With steep=1 the variances span 27 decades, more than float64 has digits."""
    a = rows(n, width, 1, steep=steep)
    trace = np.trace(np.cov(a, rowvar=False))
    for distance in (from_moments(moments(a), moments(a)), from_rows(a, a), from_rows(a, a[::-1])):
        assert 0 <= distance <= 1e-6 * trace
    assert 0 <= from_moments(moments(a), moments(a[::-1])) <= 1e-6 * trace


@pytest.mark.parametrize("steep", [0.2, 0.4, 1.0])
def test_ill_conditioned_sets_are_measured_by_singular_values(steep):
    a, b = rows(200, 32, 1, steep=steep), rows(200, 32, 2, steep=steep)
    assert from_moments(moments(a), moments(b)) == pytest.approx(from_rows(a, b), rel=1e-6)


@pytest.mark.parametrize(
    ("condition", "by_singular_values"), [(10, False), (1e5, False), (1e8, True), (1e10, True), (1e14, True)]
)
def test_eigenvalues_are_trusted_as_far_as_rounding_lets_them(monkeypatch, condition, by_singular_values):
    """A matrix of this condition number with itself: the term is its trace."""
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(32, 32)))[0]
    matrix = rotation * np.geomspace(1, 1 / condition, 32) @ rotation.T
    calls, right = [], frechet._nuclear_norm
    monkeypatch.setattr(frechet, "_nuclear_norm", lambda product: calls.append(1) or right(product))
    assert frechet._cross((matrix + matrix.T) / 2, (matrix + matrix.T) / 2) == pytest.approx(np.trace(matrix), rel=1e-9)
    assert bool(calls) == by_singular_values


def test_a_constant_set_has_no_spread():
    a, b = np.zeros((10, 3)), np.full((10, 3), 2.0)
    assert from_moments(moments(a), moments(b)) == pytest.approx(12)
    assert from_rows(a, b) == pytest.approx(12)


def test_float32_rows_are_measured_in_float64():
    a, b = (rows(100, 8, seed).astype(np.float32) for seed in (1, 2))
    assert from_rows(a, b) == pytest.approx(naive(a.astype(np.float64), b.astype(np.float64)), rel=1e-9)


def test_sets_of_different_size_are_refused():
    a, b = rows(20, 3, 1), rows(21, 3, 2)
    with pytest.raises(UserError, match="same size, but has 20 and 21 images"):
        from_rows(a, b)
    with pytest.raises(UserError, match="same size, but has 20 and 21 images"):
        from_moments(moments(a), moments(b))
    with pytest.raises(UserError, match="2 images or more, but has 1"):
        from_rows(a[:1], b[:1])


def test_features_of_different_width_cannot_be_combined():
    with pytest.raises(UserError, match="different width cannot be combined: 3 and 4"):
        moments(rows(5, 3, 1)) + moments(rows(5, 4, 1))


def test_more_images_of_the_same_kind_come_closer():
    """The bias that makes n part of every Fréchet distance."""
    far, near = (from_moments(moments(rows(n, 32, 1)), moments(rows(n, 32, 2))) for n in (40, 4000))
    assert far > 10 * near > 0
