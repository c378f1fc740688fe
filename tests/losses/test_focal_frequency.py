"""The focal frequency loss against its definition, written out with numpy's arithmetic alone."""

from __future__ import annotations

import cmath
import math

import numpy as np
import pytest
import torch

from sr_dist.core.batch import Batch
from sr_dist.core.errors import UserError
from sr_dist.losses.content import focal_frequency


def dft(image: np.ndarray) -> np.ndarray:
    """F(u, v) = sum_xy f(x, y) exp(-2 pi i (u x / H + v y / W)) / sqrt(H W), term by term."""
    height, width = image.shape
    result = np.zeros((height, width), complex)
    for u in range(height):
        for v in range(width):
            for x in range(height):
                for y in range(width):
                    result[u, v] += image[x, y] * cmath.exp(-2j * math.pi * (u * x / height + v * y / width))
    return result / math.sqrt(height * width)


def by_definition(sr: np.ndarray, hr: np.ndarray, alpha: float, patches: int) -> float:
    values = []
    for image in range(len(sr)):
        height, width = sr.shape[2] // patches, sr.shape[3] // patches
        for row in range(patches):
            for column in range(patches):
                for channel in range(sr.shape[1]):
                    cut = (image, channel, slice(row * height, (row + 1) * height), slice(column * width, (column + 1) * width))
                    difference = abs(dft(sr[cut]) - dft(hr[cut]))
                    weight = difference**alpha / (difference**alpha).max()
                    values += list((weight * difference**2).flatten())
    return float(np.mean(values))


def loss(sr, hr, **options):
    batch = Batch(hr[..., ::2, ::2], hr, torch.full((len(hr),), -1), ("x",) * len(hr))
    return focal_frequency.build(focal_frequency.Config(**options))(sr, batch)


@pytest.mark.parametrize(("alpha", "patches"), [(1.0, 1), (0.0, 1), (2.5, 1), (1.0, 2)])
def test_the_loss_is_the_definition(alpha, patches):
    generator = torch.Generator().manual_seed(3)
    sr, hr = (torch.rand(2, 3, 6, 4, generator=generator) for _ in range(2))
    expected = by_definition(sr.double().numpy(), hr.double().numpy(), alpha, patches)
    assert float(loss(sr, hr, alpha=alpha, patch_factor=patches)) == pytest.approx(expected, rel=1e-5)


def test_without_weights_it_is_the_mean_squared_error():
    """Parseval: an orthonormal DFT keeps sums of squares."""
    sr, hr = torch.rand(1, 3, 8, 6), torch.rand(1, 3, 8, 6)
    assert float(loss(sr, hr, alpha=0)) == pytest.approx(float((sr - hr).square().mean()), rel=1e-5)


def test_weights_have_no_gradient_and_equal_images_have_none_at_all():
    """d loss / d sr is that of E[w d] with a constant w; at equal images everything is 0 and finite."""
    sr, hr = torch.rand(1, 1, 4, 4, dtype=torch.float32).requires_grad_(), torch.rand(1, 1, 4, 4)
    loss(sr, hr).backward()
    difference = np.fft.fft2((sr.detach() - hr).numpy()[0, 0], norm="ortho")
    weight = abs(difference) / abs(difference).max()
    expected = 2 * np.fft.ifft2(weight * difference, norm="ortho").real / 16
    assert sr.grad[0, 0].numpy() == pytest.approx(expected, rel=1e-4, abs=1e-7)
    equal = hr.clone().requires_grad_()
    value = loss(equal, hr)
    value.backward()
    assert value.item() == 0 and (equal.grad == 0).all()


def test_patches_must_fit():
    with pytest.raises(UserError, match=r"^objective\.content\.focal_frequency\.patch_factor: 3 does not divide images of 8 x 8"):
        loss(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8), patch_factor=3)
