from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from sr_dist.data.augment import tilted, to_float, turned, varied
from sr_dist.recipe.sections import Augment


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


def test_bytes_become_numbers_from_zero_to_one():
    floats = to_float(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert floats.dtype == torch.float32
    assert torch.allclose(floats, torch.tensor([0.0, 0.2, 1.0]))


# ---- data.augment


BITS = torch.tensor([3, 1 << 40, 77, 2**62])
WAYS = Augment(rotate_degrees=15, contrast=0.3, brightness=0.2, erase=0.5)


def pictures(count=4, height=12, width=12):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(3))


def test_nothing_asked_for_changes_nothing():
    assert torch.equal(varied(pictures(), BITS, Augment()), pictures())


def test_every_image_is_varied_by_its_own_bits_alone():
    """The same alone and in a batch; others with other bits; always in the range."""
    together = varied(pictures(), BITS, WAYS)
    for i in range(4):
        torch.testing.assert_close(varied(pictures()[i : i + 1], BITS[i : i + 1], WAYS)[0], together[i])
    assert together.min() >= 0 and together.max() <= 1
    same = varied(pictures(1).repeat(64, 1, 1, 1), torch.arange(64), WAYS)
    assert len({one.numpy().tobytes() for one in same}) == 64


def test_a_quarter_of_a_turn_is_exact_and_a_tilt_keeps_the_middle():
    square = pictures()
    quarter = torch.full((4,), torch.pi / 2)
    torch.testing.assert_close(tilted(square, quarter), torch.rot90(square, 1, (2, 3)), atol=1e-5, rtol=0)
    disk = torch.zeros(1, 1, 21, 41)
    y, x = torch.meshgrid(torch.arange(21.0) - 10, torch.arange(41.0) - 20, indexing="ij")
    disk[0, 0] = (9 - (y.square() + x.square()).sqrt()).clamp(0, 8) / 8  # round, in an oblong image: no turn changes it
    torch.testing.assert_close(tilted(disk, torch.tensor([0.7])), disk, atol=0.05, rtol=0)


def test_contrast_and_brightness_stay_within_what_is_asked_for():
    flat = torch.full((200, 1, 4, 4), 0.5)
    bright = varied(flat, torch.arange(200), Augment(brightness=0.2))[:, 0, 0, 0]
    assert 0.3 <= bright.min() < 0.33 and 0.67 < bright.max() <= 0.7
    steps = torch.tensor([0.4, 0.6]).repeat(200, 1, 4, 2)
    wide = varied(steps, torch.arange(200), Augment(contrast=0.5))
    spread = (wide[..., 1] - wide[..., 0])[:, 0, 0]
    assert 0.1 <= spread.min() < 0.115 and 0.285 < spread.max() <= 0.3
    torch.testing.assert_close(wide.mean((1, 2, 3)), torch.full((200,), 0.5))


def test_so_many_images_lose_a_rectangle():
    random = pictures(400, 20, 30)
    found = varied(random, torch.arange(400), Augment(erase=0.25))
    gone = (found != random).any(1)  # (B, H, W)
    hit = gone.flatten(1).any(1)
    assert 70 <= hit.sum() <= 130
    for area in gone[hit][:20]:
        rows, columns = area.any(1), area.any(0)
        assert torch.equal(area, rows[:, None] & columns[None])  # a rectangle
        assert 1 <= rows.sum() <= 9 and 2 <= columns.sum() <= 13


def test_training_images_are_varied_before_lr_is_made(photo_shards):
    from sr_dist.data.format import open_shards
    from sr_dist.data.loader import Stream
    from sr_dist.recipe.sections import Data

    def first(**options):
        data = Data(train=str(photo_shards), crop=16, batch=4, workers=0, **options)
        shards = open_shards(str(photo_shards))
        found = Stream([shards], data, seed=0, scale=2, accumulate=1, steps=1, channels=3,
                       degrade=lambda hr, seeds: hr[..., ::2, ::2], device=torch.device("cpu"))  # fmt: skip
        return next(iter(found.steps(1)))[1][0]

    plain, changed = first(), first(augment={"brightness": 0.3})
    assert plain.keys == changed.keys and not torch.equal(plain.hr, changed.hr)
    assert torch.equal(changed.lr, changed.hr[..., ::2, ::2])
    assert torch.equal(changed.hr, first(augment={"brightness": 0.3}).hr)
