"""EMAs of any length after training: the paper's formulas beside numerical integrals, and beside averages width in training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from sr_dist.core.errors import UserError
from sr_dist.models.post_hoc_ema import (
    SIGMAS,
    Profile,
    averaged,
    check_length,
    dots,
    gamma_of,
    misfit,
    mixture,
    new_share,
    prefix,
    sigma_of,
    snapshots,
)


def curve(profile: Profile, tau: np.ndarray) -> np.ndarray:
    gamma = gamma_of(profile.sigma)
    return np.where(tau <= profile.step, (gamma + 1) * tau**gamma / profile.step ** (gamma + 1), 0.0)


def test_the_widths_of_the_paper_have_its_exponents():
    """Section 3.1: sigma_rel 0.05 and 0.10 are gamma 16.97 and 6.94."""
    assert (gamma_of(0.05), gamma_of(0.10)) == (pytest.approx(16.97, abs=5e-3), pytest.approx(6.94, abs=5e-3))


@given(st.floats(0.01, 0.28))
def test_the_width_is_the_standard_deviation_of_the_profile(sigma):
    """Of tau as a share of the training; and gamma_of is the inverse of sigma_of."""
    gamma = gamma_of(sigma)
    assert sigma_of(gamma) == pytest.approx(sigma, rel=1e-9)
    moments = [(gamma + 1) / (gamma + 1 + k) for k in (1, 2)]
    assert moments[1] - moments[0] ** 2 == pytest.approx(sigma**2, rel=1e-6)


@given(st.integers(1, 500), st.integers(1, 500), st.floats(0.03, 0.25), st.floats(0.03, 0.25))
def test_products_of_profiles_are_their_integrals(first, second, sigma_a, sigma_b):
    a, b = Profile(first, sigma_a), Profile(second, sigma_b)
    nodes, weights = np.polynomial.legendre.leggauss(200)
    end = min(first, second)
    tau = (nodes + 1) / 2 * end
    expected = float((weights / 2 * end * curve(a, tau) * curve(b, tau)).sum())
    table = dots([a, b], [b, a, b])
    assert table.shape == (2, 3)
    assert [table[0, 0], table[0, 2], table[1, 1]] == pytest.approx([expected] * 3, rel=1e-6)
    assert table[0, 1] == pytest.approx((gamma_of(sigma_a) + 1) ** 2 / (2 * gamma_of(sigma_a) + 1) / first)


@pytest.mark.parametrize("sigma", [0.03, 0.1, 0.25])
def test_updates_add_up_to_the_profile(sigma):
    """The weight of every step in the average, from the updates alone, against the integral of the profile over the step."""
    steps, gamma = 200, gamma_of(sigma)
    shares = np.zeros(steps)
    for step in range(1, steps + 1):
        shares *= 1 - new_share(sigma, step)
        shares[step - 1] += new_share(sigma, step)
    ends = np.arange(steps + 1) / steps
    np.testing.assert_allclose(shares, np.diff(ends ** (gamma + 1)), rtol=1e-9, atol=1e-15)


STORED = [Profile(step, sigma) for step in range(10, 101, 10) for sigma in SIGMAS]


@pytest.mark.parametrize(("sigma", "most"), [(0.05, 1e-6), (0.10, 1e-6), (0.07, 0.02), (0.15, 0.04), (0.2, 0.08)])
def test_profiles_between_the_stored_ones_are_reached(sigma, most):
    factors = mixture(STORED, Profile(100, sigma))
    assert factors.sum() == pytest.approx(1, abs=1e-8)
    assert misfit(STORED, Profile(100, sigma)) <= most
    tau = np.linspace(0, 100, 20001)
    mixed = sum(factor * curve(stored, tau) for factor, stored in zip(factors, STORED, strict=True))
    wanted = curve(Profile(100, sigma), tau)
    distance = np.sqrt(np.trapezoid((mixed - wanted) ** 2, tau) / np.trapezoid(wanted**2, tau))
    assert distance == pytest.approx(misfit(STORED, Profile(100, sigma)), abs=2e-3)


def test_more_snapshots_come_nearer_and_few_keep_the_sum():
    errors = [misfit([p for p in STORED if p.step % every == 0], Profile(100, 0.2)) for every in (50, 20, 10)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0] / 2
    assert mixture([Profile(100, sigma) for sigma in SIGMAS], Profile(100, 0.2)).sum() == pytest.approx(1, abs=1e-8)


def test_an_average_of_snapshots_is_the_average_that_training_would_have_kept(tmp_path):
    """A path of weights: averages of 0.05 and 0.10 are stored every 10 steps; those of 0.12 and 0.05 at the end are made of
    them, and compared with averages that were width all along."""
    draw = torch.Generator().manual_seed(0)
    path = torch.cumsum(torch.randn(200, 6, generator=draw, dtype=torch.float64), 0) + 5
    width = {sigma: path[0].clone() for sigma in (*SIGMAS, 0.12)}
    (tmp_path / "post_hoc").mkdir()
    for step, weights in enumerate(path, 1):
        for sigma, average in width.items():
            average.lerp_(weights, new_share(sigma, step))
        if step % 10 == 0:
            tensors = {f"{prefix(sigma)}body.weight": width[sigma].float().clone() for sigma in SIGMAS}
            save_file(tensors, tmp_path / "post_hoc" / f"{step:07d}.safetensors")
    files = snapshots(tmp_path)
    assert list(files) == list(range(10, 201, 10))
    for sigma, tolerance in ((0.05, 1e-5), (0.10, 1e-5), (0.12, 0.02)):
        own = averaged(files, sigma, 200, "RUN")
        assert list(own) == ["body.weight"] and own["body.weight"].dtype == torch.float32
        spread = path.std(0).mean()
        assert (own["body.weight"].double() - width[sigma]).abs().max() <= tolerance * spread, sigma
    earlier = averaged(files, 0.1, 100, "RUN")["body.weight"]
    stored = averaged({100: files[100]}, 0.1, 100, "RUN")["body.weight"]
    torch.testing.assert_close(earlier, stored, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sigma", [0.0, 0.005, 0.29, 1.0])
def test_lengths_that_no_profile_has_are_refused(sigma):
    with pytest.raises(UserError, match=r"^lengths: .* is no length of an EMA"):
        check_length(sigma, "lengths")
