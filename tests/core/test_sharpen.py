"""Real-ESRGAN's unsharp masking, against scipy's filters in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d

from sr_dist.core.sharpen import sharpened


def reference(image: np.ndarray) -> np.ndarray:
    """Of one channel. OpenCV's kernel of 51 taps has the standard deviation 0.3 ((51 - 1) / 2 - 1) + 0.8 = 8."""
    taps = np.exp(-(np.arange(-25, 26) ** 2) / (2 * 8.0**2))

    def filtered(values):
        for axis in (0, 1):
            values = correlate1d(values, taps / taps.sum(), axis=axis, mode="mirror")
        return values

    difference = image - filtered(image)
    mask = filtered((np.abs(difference) * 255 > 10).astype(np.float64))
    return mask * np.clip(image + 0.5 * difference, 0, 1) + (1 - mask) * image


@pytest.mark.parametrize("size", [(96, 64), (20, 31), (1, 40)])
def test_it_is_real_esrgans_unsharp_mask(make_photo, size):
    photo = torch.from_numpy(make_photo(3, *size)).permute(2, 0, 1)[None].double() / 255
    actual = sharpened(photo)
    for channel in range(3):
        np.testing.assert_allclose(actual[0, channel], reference(photo[0, channel].numpy()), atol=1e-12)
    assert torch.allclose(sharpened(photo.float()).double(), actual, atol=1e-4)


def test_flat_images_stay_as_they_are_and_edges_get_stronger():
    flat = torch.full((1, 1, 64, 64), 0.3, dtype=torch.float64)
    assert torch.allclose(sharpened(flat), flat, atol=1e-12)
    edge = torch.where(torch.arange(64) < 32, 0.4, 0.6).double().expand(1, 1, 64, 64)
    row = sharpened(edge)[0, 0, 10]
    assert row[31] < 0.38 and row[32] > 0.62  # half of the difference of 0.1 is added, times a mask of about a half


def test_an_image_is_the_same_in_any_batch(make_photo):
    photos = torch.stack([torch.from_numpy(make_photo(i, 48, 48)).permute(2, 0, 1) for i in range(3)]).double() / 255
    assert torch.allclose(sharpened(photos)[1:2], sharpened(photos[1:2]), atol=1e-14, rtol=0)
