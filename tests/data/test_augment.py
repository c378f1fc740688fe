from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sr_dist.data.augment import crop_pair, to_float, turned


def image(height, width, channels=3):
    """Every pixel another value."""
    return torch.arange(channels * height * width, dtype=torch.float32).reshape(channels, height, width)


def turned_by_numpy(picture: np.ndarray, bits: int, flip: bool, rotate: bool) -> np.ndarray:
    if flip and bits & 1:
        picture = picture[:, :, ::-1]
    if rotate and bits & 2:
        picture = picture[:, ::-1, :]
    if rotate and bits & 4 and picture.shape[1] == picture.shape[2]:
        picture = picture.transpose(0, 2, 1)
    return picture


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=6), st.booleans(), st.booleans(), st.booleans())
def test_every_image_of_a_batch_is_turned_by_its_own_bits(bits, flip, rotate, square):
    pictures = torch.stack([image(4, 4 if square else 6) + 1000 * i for i in range(len(bits))])
    found = turned(pictures, torch.tensor(bits), flip, rotate)
    for i, number in enumerate(bits):
        assert np.array_equal(found[i].numpy(), turned_by_numpy(pictures[i].numpy(), number, flip, rotate))


def test_eight_bit_patterns_are_the_eight_orientations_of_a_square():
    square = image(3, 3, 1)
    seen = turned(square.repeat(8, 1, 1, 1), torch.arange(8), True, True)
    expected = {np.rot90(side, k).tobytes() for side in (square[0].numpy(), square[0].numpy()[:, ::-1]) for k in range(4)}
    assert len(expected) == 8
    assert {picture[0].numpy().tobytes() for picture in seen} == expected


def test_flips_alone_are_two_orientations_and_nothing_is_one():
    square = image(3, 3).repeat(8, 1, 1, 1)
    assert len({picture.numpy().tobytes() for picture in turned(square, torch.arange(8), True, False)}) == 2
    assert torch.equal(turned(square, torch.arange(8), False, False), square)


@given(st.integers(0, 7))
def test_turning_commutes_with_making_lr(bits):
    """Stored LR is turned by the same bits as HR, so it stays the LR of that HR."""
    hr = image(8, 8)[None]
    lr = torch.nn.functional.avg_pool2d(hr, 2)
    both = [turned(images, torch.tensor([bits]), True, True) for images in (hr, lr)]
    assert torch.equal(torch.nn.functional.avg_pool2d(both[0], 2), both[1])


@given(
    st.sampled_from([1, 2, 3, 4]), st.integers(1, 5), st.integers(0, 6), st.integers(0, 6), st.integers(0, 6), st.integers(0, 6)
)  # fmt: skip
def test_crops_of_hr_and_lr_show_the_same_place(scale, cells, more_rows, more_columns, row, column):
    lr = image(cells + more_rows, cells + more_columns)
    hr = lr.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    top, left = min(row, more_rows) * scale, min(column, more_columns) * scale
    hr_crop, lr_crop = crop_pair(hr, lr, cells * scale, scale, lambda height, width, crop: (top, left))
    assert hr_crop.shape == (3, cells * scale, cells * scale)
    assert torch.equal(hr_crop, hr[:, top : top + cells * scale, left : left + cells * scale])
    assert torch.equal(hr_crop[:, ::scale, ::scale], lr_crop)


def test_the_place_is_asked_for_the_size_of_the_image():
    asked = []
    crop_pair(image(10, 14), None, 4, 2, lambda *sizes: asked.append(sizes) or (0, 0))
    assert asked == [(10, 14, 4)]


def test_without_a_crop_hr_loses_what_does_not_divide():
    hr, lr = crop_pair(image(11, 14), None, None, 4, lambda *sizes: pytest.fail("no place is needed"))
    assert torch.equal(hr, image(11, 14)[:, :8, :12])
    assert lr is None
    assert crop_pair(image(11, 14), image(2, 3), None, 4, lambda *sizes: (0, 0))[1].shape == (3, 2, 3)


@given(st.integers(1, 12), st.integers(1, 12))
def test_small_images_get_their_edges_repeated(height, width):
    small = (image(height, width) % 256).to(torch.uint8)
    found, _ = crop_pair(small, None, 8, 2, lambda height, width, crop: (0, 0))
    expected = np.pad(small.numpy(), ((0, 0), (0, max(8 - height, 0)), (0, max(8 - width, 0))), mode="edge")[:, :8, :8]
    assert found.dtype == torch.uint8
    assert np.array_equal(found.numpy(), expected)


def test_small_pairs_are_repeated_alike():
    lr = image(2, 3)
    hr = lr.repeat_interleave(2, 1).repeat_interleave(2, 2)
    hr_crop, lr_crop = crop_pair(hr, lr, 8, 2, lambda height, width, crop: (0, 0))
    assert torch.equal(hr_crop[:, ::2, ::2], lr_crop)


def test_bytes_become_numbers_from_zero_to_one():
    floats = to_float(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert floats.dtype == torch.float32
    assert torch.allclose(floats, torch.tensor([0.0, 0.2, 1.0]))
