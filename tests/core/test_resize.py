"""imresize compared with a pixel-by-pixel transcription of MATLAB's imresize.m (contributions, resizeAlongDim)."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sr_dist.core.resize import _upscale, imresize, rounded
from sr_dist.data.degradations import bicubic

SCALES = [1 / 2, 1 / 3, 1 / 4, 1 / 8, 2, 3, 4, 1.5, 0.7]


def keys_cubic(x):
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0


def one_line(line, scale, border="mirror"):
    """One row or column, with MATLAB's positions, counted from 1."""
    size, narrowing = len(line), min(scale, 1)
    width = 4 / narrowing
    values = []
    for x in range(1, math.ceil(size * scale) + 1):
        u = x / scale + 0.5 * (1 - 1 / scale)
        left = math.floor(u - width / 2)
        total = weights = 0.0
        for position in range(left, left + math.ceil(width) + 2):
            weight = keys_cubic(narrowing * (u - position))
            if border == "replicate":
                inside = min(max(position, 1), size)
            else:
                mirrored = [*range(1, size + 1), *range(size, 0, -1)]
                inside = mirrored[(position - 1) % (2 * size)]
            total, weights = total + weight * line[inside - 1], weights + weight
        values.append(total / weights)
    return np.array(values)


def by_loops(image, scale, border="mirror", rounding=lambda levels: levels):
    columns = rounding(np.stack([one_line(column, scale, border) for column in image.T], 1))
    return rounding(np.stack([one_line(row, scale, border) for row in columns]))


def to_level(levels):
    return np.floor(np.clip(levels, 0, 255) + 0.5)


def random_levels(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.float64)


@pytest.mark.parametrize("border", ["mirror", "replicate"])
@pytest.mark.parametrize("size", [(16, 24), (7, 13), (1, 5), (3, 1)])
@pytest.mark.parametrize("scale", SCALES)
def test_equals_matlab(scale, size, border):
    image = random_levels(*size) / 255
    resized = imresize(torch.tensor(image), scale, border=border)
    np.testing.assert_allclose(resized.numpy(), by_loops(image, scale, border), atol=1e-12)


@pytest.mark.parametrize("border", ["mirror", "replicate"])
@pytest.mark.parametrize("size", [(270, 2), (2, 601)])
@pytest.mark.parametrize("scale", [1 / 2, 1 / 3, 1 / 4, 1 / 8, 2, 3, 1.5, 0.7, 0.01])
def test_images_of_several_blocks_equal_matlab(scale, size, border):
    image = random_levels(*size) / 255
    resized = imresize(torch.tensor(image), scale, border=border)
    np.testing.assert_allclose(resized.numpy(), by_loops(image, scale, border), atol=1e-12)


@pytest.mark.parametrize("scale", [1 / 2, 1 / 4, 2])
def test_8_bit_images_of_several_blocks_equal_matlab_level_for_level(scale):
    levels = random_levels(300, 6)
    resized = imresize(torch.tensor(levels / 255), scale, to_8_bit=True) * 255
    assert (np.rint(resized.numpy()) == by_loops(levels, scale, rounding=to_level)).all()


def test_memory_grows_with_the_pixels_not_with_a_matrix_of_the_whole_axis():
    """A line of 40,000 pixels: its matrix would have 40,000 x 80,000 numbers, 26 GB."""
    line = torch.rand(1, 40_000, dtype=torch.float64)
    assert imresize(line, 2).shape == (2, 80_000)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scale", [1 / 2, 1 / 4, 1 / 8, 2, 4])
def test_8_bit_images_equal_matlab_level_for_level(scale, dtype):
    """These scales have weights that are sums of powers of two, so the reference is exact and halves are true halves."""
    levels = random_levels(128, 96) if scale < 1 else random_levels(24, 20)
    resized = imresize(torch.tensor(levels / 255, dtype=dtype), scale, to_8_bit=True) * 255
    expected = by_loops(levels, scale, rounding=to_level)
    assert (np.rint(resized.numpy()) == expected).all(), f"{(np.rint(resized.numpy()) != expected).sum()} pixels of another level"


def test_8_bit_images_are_rounded_between_the_passes_columns_first():
    levels = random_levels(16, 16)
    expected = by_loops(levels, 1 / 3, rounding=to_level)
    rows_first = by_loops(levels.T, 1 / 3, rounding=to_level).T
    rounded_once = to_level(by_loops(levels, 1 / 3))
    resized = np.rint((imresize(torch.tensor(levels / 255), 1 / 3, to_8_bit=True) * 255).numpy())
    assert (resized == expected).all()
    assert (expected != rows_first).any()
    assert (expected != rounded_once).any()  # the image distinguishes the three


def test_8_bit_keeps_overshoot_inside_the_range():
    edge = torch.tensor([[0.0] * 6 + [1.0] * 6] * 4, dtype=torch.float64)
    assert imresize(edge, 2).max() > 1 and imresize(edge, 2).min() < 0
    resized = imresize(edge, 2, to_8_bit=True)
    assert resized.max() == 1 and resized.min() == 0


def test_rounding_takes_halves_up():
    levels = torch.tensor([0.25, 0.5, 1.5, 2.5, 127.5, 254.5, 300.0, -4.0], dtype=torch.float64)
    assert torch.equal((rounded(levels / 255) * 255).round(), torch.tensor([0, 1, 2, 3, 128, 255, 255, 0], dtype=torch.float64))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from(SCALES), st.integers(0, 255), st.booleans())
def test_constants_stay(height, width, scale, level, to_8_bit):
    resized = imresize(torch.full((1, height, width), level / 255, dtype=torch.float64), scale, to_8_bit=to_8_bit)
    assert resized.shape == (1, math.ceil(height * scale), math.ceil(width * scale))
    torch.testing.assert_close(resized, torch.full_like(resized, level / 255), atol=1e-12, rtol=0)


def test_a_ramp_stays_a_ramp_away_from_the_borders():
    ramp = torch.arange(32, dtype=torch.float64).repeat(32, 1)
    down, up = imresize(ramp, 1 / 2), imresize(ramp, 2)
    # Output pixel i lies at 2 i + 1/2 on the input when halving, and at i / 2 - 1/4 when doubling.
    torch.testing.assert_close(down[:, 2:-2], (2 * torch.arange(16, dtype=torch.float64) + 0.5)[2:-2].expand(16, -1))
    torch.testing.assert_close(up[:, 4:-4], (torch.arange(64, dtype=torch.float64) / 2 - 0.25)[4:-4].expand(64, -1))


def test_doubling_reproduces_parabolas():
    """Keys' kernel with a = -1/2 is exact to second order; other values of a are not."""
    places = torch.arange(16, dtype=torch.float64)
    up = imresize((places**2).repeat(4, 1), 2)
    torch.testing.assert_close(up[0, 4:-4], ((torch.arange(32, dtype=torch.float64) / 2 - 0.25) ** 2)[4:-4])


@pytest.mark.parametrize("size", [(1, 1), (5, 8), (17, 3)])
def test_scale_one_changes_nothing(size):
    image = torch.rand(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(imresize(image, 1.0), image)


def test_replicate_differs_only_at_the_border():
    image = torch.rand(32, 32, dtype=torch.float64)
    mirrored, replicated = imresize(image, 1 / 2), imresize(image, 1 / 2, border="replicate")
    torch.testing.assert_close(mirrored[1:-1, 1:-1], replicated[1:-1, 1:-1])
    for edge in (0, -1):
        assert (mirrored[edge] - replicated[edge]).abs().max() > 1e-3
        assert (mirrored[:, edge] - replicated[:, edge]).abs().max() > 1e-3


def test_every_image_of_a_batch_is_resized_alone():
    images = torch.rand(2, 3, 9, 12, dtype=torch.float64)
    one_by_one = torch.stack([torch.stack([imresize(channel, 1 / 3) for channel in image]) for image in images])
    torch.testing.assert_close(imresize(images, 1 / 3), one_by_one)


def test_gradients_flow_through():
    image = torch.rand(1, 6, 6, requires_grad=True)
    imresize(image, 2).sum().backward()
    assert image.grad is not None
    assert image.grad.sum() == pytest.approx(144, rel=1e-5)  # the weights of each of the 144 pixels sum to one


def test_autocast_leaves_the_precision_alone():
    """bf16 has 8 bits of mantissa: matrix products in it are off by more than a level of an 8-bit image."""
    image = torch.rand(1, 3, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        resized = imresize(image, 2)
    torch.testing.assert_close(resized.float(), imresize(image, 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_bicubic_degradation_is_matlabs_8_bit_result(scale):
    levels = random_levels(24, 36, seed=scale)
    degrade = bicubic.build(bicubic.Config(), scale)
    resized = degrade(torch.tensor(levels / 255)[None, None], torch.tensor([0]))
    assert resized.shape == (1, 1, 24 // scale, 36 // scale)
    expected = by_loops(levels, 1 / scale, rounding=to_level)
    assert (np.abs(resized[0, 0].numpy() * 255 - expected) <= 1 + 1e-6).all()  # exact halves are tested above
    assert (np.rint(resized[0, 0].numpy() * 255) == expected).mean() > 0.98
    torch.testing.assert_close((resized * 255).round() / 255, resized, atol=1e-12, rtol=0)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 12])
@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
def test_the_form_for_exported_graphs_is_the_same_function(size, scale):
    images = torch.rand(2, 3, size, size + 1, dtype=torch.float64)
    resized = _upscale(_upscale(images, scale).mT, scale).mT
    torch.testing.assert_close(resized, imresize(images, scale), atol=1e-12, rtol=0)
