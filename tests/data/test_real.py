"""Real-ESRGAN's degradations: JPEG against Pillow, kernels and resizers against formulas, and the effect of the seed."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from sr_dist.core import config
from sr_dist.core.sharpen import sharpened
from sr_dist.data import jpeg_compression
from sr_dist.data.degradations import real
from sr_dist.tools import traffic

SEEDS = torch.tensor([5, 2**62 + 1, 0, 77, 123456789, 9])


def photos(count: int, side: int, channels: int = 3) -> torch.Tensor:
    """(count, channels, side, side) parts of a photograph."""
    from skimage import data

    photo = torch.from_numpy(data.astronaut()).permute(2, 0, 1).float() / 255
    parts = [photo[:, 40 + 30 * i : 40 + 30 * i + side, 150 : 150 + side] for i in range(count)]
    return torch.stack(parts)[:, :channels].contiguous()


def canvas(images: torch.Tensor) -> real.Canvas:
    return real.Canvas(images, *(torch.full((len(images),), side) for side in images.shape[-2:]))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [30, 49, 50, 75, 95])
def test_jpeg_agrees_with_pillow(quality, channels):
    images = photos(2, 96, channels).double()
    ours = jpeg_compression.jpeg(images, torch.tensor([quality, quality]))
    for image, our in zip(images, ours, strict=True):
        pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        file = io.BytesIO()
        Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(file, "JPEG", quality=quality)
        theirs = torch.from_numpy(np.array(Image.open(file)).reshape(96, 96, channels)).permute(2, 0, 1)
        difference = (our * 255 - theirs).abs()
        # Where libjpeg's integer cosine rounds differently, a whole block moves by several levels.
        assert difference.mean() < 0.7 and difference.gt(4).double().mean() < 0.03
        damage = (image * 255 - theirs).abs().mean()
        assert difference.mean() < 0.3 * damage


def test_each_image_has_its_own_quality():
    images = photos(1, 64).double().expand(3, -1, -1, -1)
    results = jpeg_compression.jpeg(images, torch.tensor([30.0, 60.0, 95.0]))
    errors = (results - images).abs().mean((1, 2, 3))
    assert errors[0] > errors[1] > errors[2] > 0
    assert torch.equal(results[1:2], jpeg_compression.jpeg(images[1:2], torch.tensor([60.0])))


def test_flat_grey_survives_jpeg():
    images = torch.full((1, 3, 16, 16), 128 / 255, dtype=torch.float64)
    assert torch.equal(jpeg_compression.jpeg(images, torch.tensor([30.0])), images)


def test_kernels_sum_to_one_and_are_zero_outside_their_size():
    draws, size = real.Draws(torch.arange(200)), torch.full((200,), 9)
    bells = real.gaussian_kernels(real.First(), size, 21, draws)
    rings = real.sinc(draws.uniform(math.pi / 3, math.pi), size, 21)
    assert (bells >= 0).all() and (rings < 0).any()
    for kernels in (bells, rings):
        torch.testing.assert_close(kernels.sum((1, 2)), torch.ones(200, dtype=torch.float64))
        kernels[:, 6:15, 6:15] = 0  # 9 x 9 at the centre of 21 x 21
        assert not kernels.any()


def test_an_isotropic_gaussian_is_the_formula():
    stage = real.First(kernel_weights=(1, 0, 0, 0, 0, 0), blur_sigma=(1.5, 1.5))
    (kernel,) = real.gaussian_kernels(stage, torch.tensor([7]), 7, real.Draws(torch.tensor([1])))
    y = torch.arange(-3, 4, dtype=torch.float64)
    expected = torch.exp(-(y[:, None] ** 2 + y**2) / (2 * 1.5**2))
    torch.testing.assert_close(kernel, expected / expected.sum())


def test_filtering_is_a_correlation_mirrored_at_the_border():
    images, kernels = torch.rand(2, 3, 20, 24, dtype=torch.float64), torch.rand(2, 7, 7, dtype=torch.float64)
    results = real.filter_images(canvas(images), kernels).images
    for image, kernel, ours in zip(images, kernels, results, strict=True):
        padded = F.pad(image[:, None], (3, 3, 3, 3), mode="reflect")
        torch.testing.assert_close(ours[:, None], F.conv2d(padded, kernel[None, None]))


@pytest.mark.parametrize("out", [5, 12, 19, 24, 31])
@pytest.mark.parametrize(("mode", "name"), enumerate(["area", "bilinear", "bicubic"]))
def test_resizers_agree_with_torch(mode, name, out):
    """Also on a canvas that is larger than the image on both sides."""
    line = torch.rand(1, 1, 24, dtype=torch.float64)
    square = line.expand(1, 24, 24)[None]  # the same in every row
    options = {} if name == "area" else {"align_corners": False}
    expected = F.interpolate(square, size=(24, out), mode=name, **options)[0, 0, 0]
    matrix = real.resize_matrix(torch.tensor([24]), torch.tensor([out]), 30, 36, torch.tensor([mode]))[0]
    assert matrix.shape == (36, 30)
    torch.testing.assert_close(matrix[:out, :24] @ line[0, 0], expected)
    assert not matrix[out:].any() and not matrix[:, 24:].any()


def test_images_on_a_larger_canvas_are_degraded_as_on_their_own():
    """The border of the image counts: the rest of the canvas has no effect."""
    image, seeds = photos(1, 37).double(), torch.tensor([3])
    around = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    around[..., :37, :37] = image
    sizes = torch.tensor([37])
    kernels = real.sinc(torch.tensor([1.5], dtype=torch.float64), torch.tensor([21]), 21)
    for step in (lambda c: real.filter_images(c, kernels), lambda c: real.compress(c, real.First(), real.Draws(seeds))):
        alone, inside = step(canvas(image)).images, step(real.Canvas(around, sizes, sizes)).images
        torch.testing.assert_close(inside[..., :37, :37], alone)


def test_gaussian_noise_has_its_sigma_and_grey_noise_no_colour():
    images = canvas(torch.full((4, 3, 64, 64), 0.5, dtype=torch.float64))
    options = {"gaussian_probability": 1, "noise_sigma": (10, 10)}
    colour = real.add_noise(images, real.First(grey_probability=0, **options), real.Draws(SEEDS[:4])).images * 255
    grey = real.add_noise(images, real.First(grey_probability=1, **options), real.Draws(SEEDS[:4])).images * 255
    for noise in (colour, grey):
        assert noise.std().item() == pytest.approx(10, rel=0.03)
        assert noise.mean().item() == pytest.approx(127.5, abs=0.4)
    assert torch.equal(grey[:, 0], grey[:, 1]) and not torch.equal(colour[:, 0], colour[:, 1])


@pytest.mark.parametrize("level", [20, 128, 240])
def test_photon_noise_is_poissons(level):
    """With one level, white is one photon, so the counts' mean and variance are level / 255, and counts are not negative."""
    images = canvas(torch.full((1, 1, 256, 256), level / 255, dtype=torch.float64))
    noise = real._photons(images.images, images, real.Draws(torch.tensor([4])).pixels(1, 256, 256))
    counts, rate = noise + level / 255, level / 255
    torch.testing.assert_close(counts, counts.round())
    assert counts.mean().item() == pytest.approx(rate, abs=0.02)
    assert counts.var().item() == pytest.approx(rate, rel=0.05)
    assert counts.eq(0).double().mean().item() == pytest.approx(math.exp(-rate), abs=0.01)


def test_many_levels_are_many_photons():
    """256 levels: noise of one pixel has the standard deviation sqrt(256 x) / 256."""
    images = (torch.arange(256, dtype=torch.float64) / 255).repeat(256, 1)[None, None]
    noise = real._photons(images, canvas(images), real.Draws(torch.tensor([8])).pixels(1, 256, 256))
    deviation = noise[0, 0].std(0)[20:]
    expected = torch.sqrt(256 * images[0, 0, 0, 20:]) / 256
    torch.testing.assert_close(deviation, expected, rtol=0.25, atol=0)
    assert deviation.mean().item() == pytest.approx(expected.mean().item(), rel=0.02)


def test_random_numbers_are_uniform_and_do_not_repeat():
    draws = real.Draws(torch.arange(400))
    first, second = draws.uniform(), draws.uniform()
    for numbers in (first, second, real.Draws(SEEDS[:1]).pixels(4096)[0]):
        assert numbers.min() >= 0 and numbers.max() < 1
        assert numbers.mean().item() == pytest.approx(0.5, abs=0.05)
        assert numbers.var().item() == pytest.approx(1 / 12, rel=0.15)
        assert len(numbers.unique()) == len(numbers)
    assert torch.corrcoef(torch.stack([first, second]))[0, 1].abs() < 0.15
    share = draws.choice([0.2, 0.7, 0.1]).bincount() / 400
    assert share.tolist() == pytest.approx([0.2, 0.7, 0.1], abs=0.08)


def test_draws_of_one_number_are_the_first_pixels_whatever_lies_between():
    """They are hashed many at a time; which number a draw gets depends on the draws before it alone."""
    draws, alone = real.Draws(SEEDS), real.Draws(SEEDS)
    for number in range(200):
        if number % 50 == 7:
            assert draws.pixels(3, 5).equal(alone.pixels(3, 5))
        elif number % 2:
            assert draws.uniform().equal(alone.pixels(1)[:, 0])
        else:
            assert draws.uniform(-2, 3).equal(-2 + 5 * alone.pixels(1)[:, 0])


def test_a_batch_takes_less_than_1600_kernels():
    """On a GPU the time of `real` is that of its launches: 3,814 before draws were hashed together."""
    hr, degrade = photos(4, 128), real.build(real.Config(), 4)
    degrade(hr, SEEDS[:4])  # makes its constants
    with traffic.Counter() as counter:
        degrade(hr, SEEDS[:4])
    assert 500 < counter.launches < 1600


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("scale", "side"), [(1, 24), (2, 46), (4, 36), (4, 64)])
def test_lr_has_its_size_its_range_and_8_bits(scale, side, channels):
    hr = photos(6, side, channels)
    lr = real.build(real.Config(), scale)(hr, SEEDS)
    assert lr.shape == (6, channels, side // scale, side // scale) and lr.dtype == torch.float32
    assert lr.min() >= 0 and lr.max() <= 1
    torch.testing.assert_close(lr * 255, (lr * 255).round(), atol=1e-4, rtol=0)
    assert torch.corrcoef(torch.stack([lr.mean((1, 2, 3)), hr.mean((1, 2, 3))]))[0, 1] > 0.5  # still those images


def test_a_sample_is_the_same_alone_and_in_any_batch():
    """The random numbers of a sample depend on its seed only, not on other samples or on torch's generators."""
    hr, degrade = photos(6, 64), real.build(real.Config(), 4)
    together = degrade(hr, SEEDS)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    for i in range(6):
        assert torch.equal(degrade(hr[i : i + 1], SEEDS[i : i + 1])[0], together[i])
    assert torch.equal(degrade(hr.flip(0), SEEDS.flip(0)).flip(0), together)
    assert torch.equal(torch.get_rng_state(), before)


def test_other_seeds_give_other_images_also_under_autocast():
    hr, degrade = photos(1, 64).expand(2, -1, -1, -1), real.build(real.Config(), 4)
    lr = degrade(hr, torch.tensor([1, 2]))
    assert (lr[0] - lr[1]).abs().mean() > 0.005
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(degrade(hr, torch.tensor([1, 2])), lr)


def test_the_smallest_images_can_be_degraded():
    lr = real.build(real.Config(), 4)(torch.rand(3, 3, 4, 8), SEEDS[:3])
    assert lr.shape == (3, 3, 1, 2) and lr.isfinite().all()


def test_options_change_one_by_one_and_the_second_stage_has_its_own_defaults():
    settings = config.typed(real.Config, {"second": {"jpeg_quality": ["60", "80"]}})
    assert settings.second.jpeg_quality == (60, 80) and settings.second.resize_range == (0.3, 1.2)
    assert settings.first == real.First()
    with pytest.raises(config.UserError, match=r"first.noise_sigma: \[30.0, 1.0\] is not a range"):
        config.typed(real.Config, {"first": {"noise_sigma": ["30", "1"]}})


def test_sharpen_degrades_sharpened_hr():
    hr = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    seeds = torch.tensor([3, 4])
    with_option = real.build(real.Config(sharpen=True), 4)(hr, seeds)
    assert torch.equal(with_option, real.build(real.Config(), 4)(sharpened(hr.double()), seeds).to(hr.dtype))
    assert not torch.equal(with_option, real.build(real.Config(), 4)(hr, seeds))
