from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from sr_dist.data.augment import orient, tilt, to_float, vary
from sr_dist.data.format import open_shards
from sr_dist.data.loader import Loader, LoaderConfig
from sr_dist.recipe.sections import Augment, Data


def numbered(height, width, channels=3):
    """An image whose pixels all differ."""
    return torch.arange(channels * height * width, dtype=torch.float32).reshape(channels, height, width)


def oriented_by_numpy(image: np.ndarray, bits: int, flip: bool, rotate: bool) -> np.ndarray:
    if flip and bits & 1:
        image = image[:, :, ::-1]
    if rotate and bits & 2:
        image = image[:, ::-1, :]
    if rotate and bits & 4 and image.shape[1] == image.shape[2]:
        image = image.transpose(0, 2, 1)
    return image


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=6), st.booleans(), st.booleans(), st.booleans())
def test_every_image_of_a_batch_is_turned_by_its_own_bits(bits, flip, rotate, square):
    images = torch.stack([numbered(4, 4 if square else 6) + 1000 * i for i in range(len(bits))])
    result = orient(images, torch.tensor(bits), flip, rotate)
    for i, number in enumerate(bits):
        assert np.array_equal(result[i].numpy(), oriented_by_numpy(images[i].numpy(), number, flip, rotate))


def test_eight_bit_patterns_are_the_eight_orientations_of_a_square():
    square = numbered(3, 3, 1)
    results = orient(square.repeat(8, 1, 1, 1), torch.arange(8), True, True)
    expected = {np.rot90(side, k).tobytes() for side in (square[0].numpy(), square[0].numpy()[:, ::-1]) for k in range(4)}
    assert len(expected) == 8
    assert {result[0].numpy().tobytes() for result in results} == expected


def test_flips_alone_are_two_orientations_and_nothing_is_one():
    square = numbered(3, 3).repeat(8, 1, 1, 1)
    assert len({result.numpy().tobytes() for result in orient(square, torch.arange(8), True, False)}) == 2
    assert torch.equal(orient(square, torch.arange(8), False, False), square)


@given(st.integers(0, 7))
def test_turning_commutes_with_making_lr(bits):
    """Stored LR is turned by the same bits as HR, so it stays the LR of that HR."""
    hr = numbered(8, 8)[None]
    lr = torch.nn.functional.avg_pool2d(hr, 2)
    both = [orient(images, torch.tensor([bits]), True, True) for images in (hr, lr)]
    assert torch.equal(torch.nn.functional.avg_pool2d(both[0], 2), both[1])


def test_bytes_become_numbers_from_zero_to_one():
    floats = to_float(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert floats.dtype == torch.float32
    assert torch.allclose(floats, torch.tensor([0.0, 0.2, 1.0]))


# ---- data.augment


BITS = torch.tensor([3, 1 << 40, 77, 2**62])
LIMITS = Augment(rotate_degrees=15, contrast=0.3, brightness=0.2, erase=0.5)


def random_images(count=4, height=12, width=12):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(3))


def test_the_default_changes_nothing():
    assert torch.equal(vary(random_images(), BITS, Augment()), random_images())


def test_every_image_varies_by_its_own_bits_alone():
    """The result is the same alone and in a batch, differs with the bits, and stays in the range."""
    together = vary(random_images(), BITS, LIMITS)
    for i in range(4):
        torch.testing.assert_close(vary(random_images()[i : i + 1], BITS[i : i + 1], LIMITS)[0], together[i])
    assert together.min() >= 0 and together.max() <= 1
    same = vary(random_images(1).repeat(64, 1, 1, 1), torch.arange(64), LIMITS)
    assert len({image.numpy().tobytes() for image in same}) == 64


def test_a_quarter_turn_is_exact_and_a_tilt_preserves_the_centre():
    square = random_images()
    quarter = torch.full((4,), torch.pi / 2)
    torch.testing.assert_close(tilt(square, quarter), torch.rot90(square, 1, (2, 3)), atol=1e-5, rtol=0)
    disk = torch.zeros(1, 1, 21, 41)
    y, x = torch.meshgrid(torch.arange(21.0) - 10, torch.arange(41.0) - 20, indexing="ij")
    disk[0, 0] = (9 - (y.square() + x.square()).sqrt()).clamp(0, 8) / 8  # a disk: no rotation changes it
    torch.testing.assert_close(tilt(disk, torch.tensor([0.7])), disk, atol=0.05, rtol=0)


def test_contrast_and_brightness_stay_within_their_limits():
    flat = torch.full((200, 1, 4, 4), 0.5)
    bright = vary(flat, torch.arange(200), Augment(brightness=0.2))[:, 0, 0, 0]
    assert 0.3 <= bright.min() < 0.33 and 0.67 < bright.max() <= 0.7
    steps = torch.tensor([0.4, 0.6]).repeat(200, 1, 4, 2)
    wide = vary(steps, torch.arange(200), Augment(contrast=0.5))
    difference = (wide[..., 1] - wide[..., 0])[:, 0, 0]
    assert 0.1 <= difference.min() < 0.115 and 0.285 < difference.max() <= 0.3
    torch.testing.assert_close(wide.mean((1, 2, 3)), torch.full((200,), 0.5))


def test_a_quarter_of_the_images_loses_a_rectangle():
    random = random_images(400, 20, 30)
    erased = vary(random, torch.arange(400), Augment(erase=0.25)) != random
    erased = erased.any(1)  # (B, H, W)
    changed = erased.flatten(1).any(1)
    assert 70 <= changed.sum() <= 130
    for area in erased[changed][:20]:
        rows, columns = area.any(1), area.any(0)
        assert torch.equal(area, rows[:, None] & columns[None])  # a rectangle
        assert 1 <= rows.sum() <= 9 and 2 <= columns.sum() <= 13


def test_training_images_vary_before_lr_is_made(photo_shards):
    def first(**options):
        data = Data(train=str(photo_shards), crop=16, batch=4, workers=0, **options)
        shards = open_shards(str(photo_shards))
        config = LoaderConfig(data, seed=0, scale=2, accumulate=1, steps=1, channels=3)
        loader = Loader([shards], config, lambda hr, seeds: hr[..., ::2, ::2], torch.device("cpu"))
        return next(iter(loader.steps(1)))[1][0]

    plain, changed = first(), first(augment={"brightness": 0.3})
    assert plain.keys == changed.keys and not torch.equal(plain.hr, changed.hr)
    assert torch.equal(changed.lr, changed.hr[..., ::2, ::2])
    assert torch.equal(changed.hr, first(augment={"brightness": 0.3}).hr)
