"""A Gaussian filter and downsampling, against the explicit sum."""

from __future__ import annotations

import math

import pytest
import torch

from sr_dist.data.degradations import gaussian


def degrade(hr, scale, **options):
    return gaussian.build(gaussian.Config(**options), scale)(hr, torch.zeros(len(hr)))


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_a_pixel_is_the_weighted_sum_around_its_centre(scale):
    hr, sigma = torch.rand(1, 1, 24, 36, dtype=torch.float64), 1.3
    lr = degrade(hr, scale, sigma=sigma)
    assert lr.shape == (1, 1, 24 // scale, 36 // scale)

    def mirrored(i, size):
        return i if 0 <= i < size else (-1 - i if i < 0 else 2 * size - 1 - i)

    for row, column in [(0, 0), (2, 3), (24 // scale - 1, 36 // scale - 1)]:
        y, x = (row + 0.5) * scale - 0.5, (column + 0.5) * scale - 0.5
        value = weight = 0.0
        for i in range(math.floor(y) - 12, math.floor(y) + 13):
            for j in range(math.floor(x) - 12, math.floor(x) + 13):
                w = math.exp(-((i - y) ** 2 + (j - x) ** 2) / (2 * sigma**2))
                value += w * hr[0, 0, mirrored(i, 24), mirrored(j, 36)].item()
                weight += w
        assert lr[0, 0, row, column].item() == pytest.approx(value / weight, abs=0.5 / 255 + 1e-4)


def test_lr_is_not_shifted_against_hr():
    """A linear ramp stays linear, sampled at the centres of the LR pixels (away from the mirrored edges)."""
    hr = (torch.arange(64, dtype=torch.float64) / 100).expand(1, 3, 64, 64)
    lr = degrade(hr, 4)
    expected = ((torch.arange(16) + 0.5) * 4 - 0.5) / 100
    assert (lr[0, 0, 8, 3:-3] - expected[3:-3]).abs().max() <= 0.5 / 255 + 1e-6


def test_a_larger_sigma_blurs_more_and_flat_images_stay_flat():
    flat = torch.full((2, 3, 16, 16), 100 / 255)
    torch.testing.assert_close(degrade(flat, 2), torch.full((2, 3, 8, 8), 100 / 255))
    stripes = torch.arange(64).remainder(4).ge(2).float().expand(1, 1, 64, 64)
    assert degrade(stripes, 2, sigma=0.3).std() > degrade(stripes, 2, sigma=1.6).std()


def test_values_are_multiples_of_1_255_also_under_autocast():
    hr = torch.rand(2, 3, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lr = degrade(hr, 2)
    torch.testing.assert_close(lr * 255, (lr * 255).round(), atol=1e-4, rtol=0)
    torch.testing.assert_close(lr, degrade(hr, 2), atol=0, rtol=0)
