"""LR as Real-ESRGAN makes it: what cameras, editors and the web do to a photograph, twice, at random.

    first    blur -> resize -> noise -> JPEG
    second   blur (sometimes) -> resize -> noise
             then resize to LR's size with a sinc filter, and JPEG, in either order; 8 bits at last

Blur: isotropic and anisotropic Gaussians, generalised (exp(-q^beta / 2)) and plateau-shaped (1 / (1 + q^beta)) ones, where
q = x^T S^-1 x, and circular sinc filters, which ring like oversharpened images. Resize: up, down or keep; area, bilinear or
bicubic, without antialiasing. Noise: Gaussian, or Poisson's as a count of up to 256 photons would have it, per colour or grey.

Every number of every sample comes from its own seed, down to the noise of each pixel: hashes, no generator. A sample is the
same alone, in any batch and on any rank. All is done for the whole batch at once: sizes differ from sample to sample, so
each lies in the upper left corner of a canvas of the largest size possible, and what looks over its border is mirrored or
repeated by index. Arithmetic is in float64: roundings of JPEG would make whole levels of the last bits, which depend on how a
batch is cut.

The authors sharpen HR before they degrade it, and as the target of their content terms; here HR stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Annotated

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from sr_dist.core.colour import LUMA
from sr_dist.core.config import Settings
from sr_dist.core.resize import rounded
from sr_dist.data.jpeg_compression import jpeg
from sr_dist.data.keyed_random import Draws

MODES = 3  # area, bilinear, bicubic, alike in probability


def _ordered(span: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= span[0] <= span[1]:
        raise ValueError(f"{list(span)} is not a range from low to high")
    return span


def _some(weights: tuple[float, ...]) -> tuple[float, ...]:
    if not sum(weights) > 0:
        raise ValueError("the weights are all zero")
    return weights


Probability = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Range = Annotated[tuple[float, float], AfterValidator(_ordered)]


class First(Settings):
    """The first time. Real-ESRGAN's numbers."""

    blur_probability: Probability = 1.0
    sinc_probability: Probability = 0.1  # of a sinc filter in a Gaussian's place
    # Gaussian, generalised, plateau: isotropic and anisotropic of each
    kernel_weights: Annotated[tuple[Weight, Weight, Weight, Weight, Weight, Weight], AfterValidator(_some)] = (
        0.45, 0.25, 0.12, 0.03, 0.12, 0.03,
    )  # fmt: skip
    blur_sigma: Range = (0.2, 3.0)  # pixels
    generalised_beta: Range = (0.5, 4.0)  # half of the draws below 1
    plateau_beta: Range = (1.0, 2.0)
    resize_weights: Annotated[tuple[Weight, Weight, Weight], AfterValidator(_some)] = (0.2, 0.7, 0.1)  # up, down, keep
    resize_range: Range = (0.15, 1.5)
    gaussian_probability: Probability = 0.5  # otherwise Poisson
    noise_sigma: Range = (1.0, 30.0)  # levels of 255
    poisson_scale: Range = (0.05, 3.0)
    grey_probability: Probability = 0.4
    jpeg_quality: Range = (30.0, 95.0)


class Second(First):
    """The second time."""

    blur_probability: Probability = 0.8
    blur_sigma: Range = (0.2, 1.5)
    resize_weights: Annotated[tuple[Weight, Weight, Weight], AfterValidator(_some)] = (0.3, 0.4, 0.3)
    resize_range: Range = (0.3, 1.2)
    noise_sigma: Range = (1.0, 25.0)
    poisson_scale: Range = (0.05, 2.5)


class Config(Settings):
    first: First = First()
    second: Second = Second()
    kernel_size: Annotated[int, Field(ge=7, le=51)] = 21  # the largest; sizes are odd, from 7 on
    final_sinc_probability: Probability = 0.8


def build(config: Config, scale: int) -> Callable[[Tensor, Tensor], Tensor]:
    def degrade(hr: Tensor, seeds: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H / scale, W / scale)."""
        with torch.autocast(hr.device.type, enabled=False):
            return degraded(hr.double(), seeds, scale, config).to(hr.dtype)

    return degrade


class Canvas:
    """Images of different sizes in the upper left corners of one tensor."""

    def __init__(self, images: Tensor, height: Tensor, width: Tensor) -> None:
        self.images = images  # (B, C, canvas height, canvas width)
        self.height, self.width = height, width  # (B,) what is used of it


def degraded(hr: Tensor, seeds: Tensor, scale: int, config: Config) -> Tensor:
    draws = Draws(seeds)
    height, width = (math.ceil(side / scale) for side in hr.shape[-2:])
    whole = [torch.full((len(hr),), side, device=hr.device) for side in hr.shape[-2:]]
    first, second = config.first, config.second

    canvas = Canvas(hr, *whole)
    canvas = blurred(canvas, first, config.kernel_size, draws)
    canvas = resized(canvas, first, hr.shape[-2], hr.shape[-1], draws)
    canvas = noisy(canvas, first, draws)
    canvas = compressed(canvas, first, draws)

    canvas = blurred(canvas, second, config.kernel_size, draws)
    canvas = resized(canvas, second, height, width, draws)
    canvas = noisy(canvas, second, draws)
    early = draws.chance(0.5)  # JPEG before the last resize, or after it
    quality = draws.uniform(*second.jpeg_quality)
    canvas = _where(early, _compressed(canvas, quality), canvas)
    canvas = to_size(canvas, torch.full_like(whole[0], height), torch.full_like(whole[1], width), height, width, draws)
    canvas = final_sinc(canvas, config, draws)
    canvas = _where(early, canvas, _compressed(canvas, quality))
    return rounded(canvas.images)


# --- Blur ---


def blurred(canvas: Canvas, stage: First, largest: int, draws: Draws) -> Canvas:
    size = 7 + 2 * torch.floor(draws.uniform(0, (largest - 7) // 2 + 1)).long()  # odd, 7 to the largest
    ring = sinc(sinc_cutoff(size, draws), size, largest)
    bell = gaussian_kernels(stage, size, largest, draws)
    kernels = torch.where(_wide(draws.chance(stage.sinc_probability), 3), ring, bell)
    return _where(draws.chance(stage.blur_probability), filtered(canvas, kernels), canvas)


def final_sinc(canvas: Canvas, config: Config, draws: Draws) -> Canvas:
    largest = config.kernel_size
    size = 7 + 2 * torch.floor(draws.uniform(0, (largest - 7) // 2 + 1)).long()
    kernels = sinc(draws.uniform(math.pi / 3, math.pi), size, largest)
    return _where(draws.chance(config.final_sinc_probability), filtered(canvas, kernels), canvas)


def sinc_cutoff(size: Tensor, draws: Draws) -> Tensor:
    """Small kernels hold no low cutoff."""
    low = torch.where(size < 13, math.pi / 3, math.pi / 5)
    return low + (math.pi - low) * draws.uniform()


def sinc(cutoff: Tensor, size: Tensor, largest: int) -> Tensor:
    """The circular low pass c J1(c r) / (2 pi r), cut to the size: (B, largest, largest), sums to one."""
    y, x = _grid(largest, cutoff.device)
    radius, cutoff = torch.sqrt(x**2 + y**2), _wide(cutoff, 3)
    around = cutoff * torch.special.bessel_j1(cutoff * radius) / (2 * math.pi * radius.clamp(min=1))
    return _cut(torch.where(radius == 0, cutoff**2 / (4 * math.pi), around), size)


def gaussian_kernels(stage: First, size: Tensor, largest: int, draws: Draws) -> Tensor:
    """(B, largest, largest) of all six kinds; each sums to one."""
    kind = draws.choice(stage.kernel_weights)
    along, across = draws.uniform(*stage.blur_sigma), draws.uniform(*stage.blur_sigma)
    angle = draws.uniform(-math.pi, math.pi)
    generalised, plateau = (_beta(span, draws) for span in (stage.generalised_beta, stage.plateau_beta))
    across = torch.where(kind % 2 == 0, along, across)

    y, x = _grid(largest, size.device)
    cos, sin = _wide(angle.cos(), 3), _wide(angle.sin(), 3)
    q = ((cos * x + sin * y) / _wide(along, 3)) ** 2 + ((cos * y - sin * x) / _wide(across, 3)) ** 2
    exponential = torch.exp(-0.5 * q ** _wide(torch.where(kind < 2, torch.ones_like(angle), generalised), 3))
    return _cut(torch.where(_wide(kind < 4, 3), exponential, 1 / (1 + q ** _wide(plateau, 3))), size)


def _beta(span: tuple[float, float], draws: Draws) -> Tensor:
    low, high = draws.uniform(min(span[0], 1.0), 1.0), draws.uniform(max(span[0], 1.0), max(span[1], 1.0))
    return torch.where(draws.chance(0.5), low, high)


def _grid(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    places = torch.arange(size, dtype=torch.float64, device=device) - size // 2
    return places[:, None], places


def _cut(kernels: Tensor, size: Tensor) -> Tensor:
    y, x = _grid(kernels.shape[-1], kernels.device)
    kernels = torch.where(torch.maximum(y.abs(), x.abs()) <= _wide(size // 2, 3), kernels, 0.0)
    return kernels / kernels.sum((1, 2), keepdim=True)


def filtered(canvas: Canvas, kernels: Tensor) -> Canvas:
    """Each image by its own kernel, mirrored at its own border (edge not repeated), by Fourier transforms."""
    reach = kernels.shape[-1] // 2
    rows, columns = (
        _mirrored(torch.arange(-reach, side + reach, device=sizes.device), sizes)
        for side, sizes in zip(canvas.images.shape[-2:], (canvas.height, canvas.width), strict=True)
    )
    padded = _taken(canvas.images, rows, columns)
    shape = padded.shape[-2:]
    spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(kernels, s=shape)[:, None].conj()  # correlation, as filter2D
    images = torch.fft.irfft2(spectrum, s=shape)[..., : shape[0] - 2 * reach, : shape[1] - 2 * reach]
    return Canvas(images, canvas.height, canvas.width)


def _mirrored(places: Tensor, sizes: Tensor) -> Tensor:
    """(n,) places and (B,) sizes -> (B, n) places inside."""
    period = (2 * (sizes - 1)).clamp(min=1)[:, None]
    inside = places % period
    return torch.where(inside < sizes[:, None], inside, period - inside)


def _taken(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(B, C, H, W) at (B, h) rows and (B, w) columns -> (B, C, h, w)."""
    samples = torch.arange(len(images), device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[samples, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


# --- Resize ---


def resized(canvas: Canvas, stage: First, height: int, width: int, draws: Draws) -> Canvas:
    """To a random multiple of (height, width), by the stage's numbers."""
    way = draws.choice(stage.resize_weights)
    low, high = stage.resize_range
    up, down = draws.uniform(max(low, 1.0), max(high, 1.0)), draws.uniform(min(low, 1.0), min(high, 1.0))
    factor = torch.where(way == 0, up, torch.where(way == 1, down, torch.ones_like(up)))
    heights, widths = ((side * factor).floor().long().clamp(min=1) for side in (height, width))
    most = max(high, 1.0)
    return to_size(canvas, heights, widths, math.floor(height * most), math.floor(width * most), draws)


def to_size(canvas: Canvas, heights: Tensor, widths: Tensor, height: int, width: int, draws: Draws) -> Canvas:
    """Images of (heights, widths) on a canvas of (height, width)."""
    mode = draws.choice([1.0] * MODES)
    rows = resize_matrix(canvas.height, heights, canvas.images.shape[-2], height, mode)
    columns = resize_matrix(canvas.width, widths, canvas.images.shape[-1], width, mode)
    return Canvas(rows[:, None] @ canvas.images @ columns[:, None].mT, heights, widths)


def resize_matrix(sizes: Tensor, outs: Tensor, size: int, out: int, mode: Tensor) -> Tensor:
    """(B, out, size), one axis: torch's area, bilinear and bicubic (a = -3/4), each image from its size to its out."""
    i = torch.arange(out, dtype=torch.float64, device=sizes.device)
    step = (sizes.double() / outs)[:, None]  # (B, 1)
    place = (i + 0.5) * step - 0.5  # (B, out)
    line = place.clamp(min=0)
    matrix = torch.where(
        _wide(mode == 2, 3), _spread(place, range(-1, 3), _cubic, sizes, size), _spread(line, range(2), _hat, sizes, size)
    )

    j = torch.arange(size, device=sizes.device)
    many = i.long()
    start = many * sizes[:, None] // outs[:, None]
    end = -(-(many + 1) * sizes[:, None] // outs[:, None])  # the ceiling
    covered = ((j >= start[..., None]) & (j < end[..., None])).double()
    matrix = torch.where(_wide(mode == 0, 3), covered / (end - start)[..., None], matrix)
    return torch.where((i < outs[:, None])[..., None], matrix, 0.0)


def _spread(place: Tensor, taps: range, kernel: Callable[[Tensor], Tensor], sizes: Tensor, size: int) -> Tensor:
    """Weights of the taps around each place, in a matrix; what lies outside goes to the edge."""
    near = place.floor()[..., None] + torch.arange(taps.start, taps.stop, dtype=torch.float64, device=place.device)
    weights = kernel(place[..., None] - near)
    inside = torch.minimum(near.long().clamp(min=0), sizes[:, None, None] - 1)
    # One tap after the other: adding in no fixed order would not give the same bits every time.
    matrix = torch.zeros(*place.shape, size, dtype=torch.float64, device=place.device)
    j = torch.arange(size, device=place.device)
    for tap in range(len(taps)):
        matrix = matrix + torch.where(inside[..., tap, None] == j, weights[..., tap, None], 0.0)
    return matrix


def _hat(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _cubic(x: Tensor) -> Tensor:
    x, a = x.abs(), -0.75
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))


# --- Noise ---


def noisy(canvas: Canvas, stage: First, draws: Draws) -> Canvas:
    shape, images = canvas.images.shape[1:], canvas.images
    grey = _wide(draws.chance(stage.grey_probability), 4)
    normal = torch.where(grey, draws.normal(1, *shape[1:]), draws.normal(*shape))
    gaussian = normal * _wide(draws.uniform(*stage.noise_sigma) / 255, 4)

    luma = _luma(images)
    of_grey = _photons(luma, canvas, draws.pixels(1, *shape[1:]))
    of_colour = _photons(images, canvas, draws.pixels(*shape))
    poisson = torch.where(grey, of_grey, of_colour) * _wide(draws.uniform(*stage.poisson_scale), 4)
    noise = torch.where(_wide(draws.chance(stage.gaussian_probability), 4), gaussian, poisson)
    return Canvas((images + noise).clamp(0, 1), canvas.height, canvas.width)


def _luma(images: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images
    return (images * images.new_tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)


def _photons(images: Tensor, canvas: Canvas, uniform: Tensor) -> Tensor:
    """What Poisson's law adds to images whose white is as many photons as they have levels, up to a power of two."""
    levels = (images * 255).round().clamp(0, 255).long()
    inside = _inside(canvas)
    seen = torch.zeros(len(images), 257, dtype=torch.float64, device=images.device)
    seen.scatter_(1, torch.where(inside, levels, 256).flatten(1), 1.0)  # what lies outside counts as a level of its own
    power = torch.ceil(torch.log2(seen[:, :256].sum(1).clamp(min=1))).long()
    table = _poisson_table().to(images.device)  # (9, 256, counts)
    counts = table.shape[-1]
    row = (_wide(power, 4) * 256 + levels) * counts
    added = torch.zeros_like(levels)
    for bit in reversed(range(counts.bit_length() - 1)):  # by halves: how many counts have a smaller distribution function
        further = added + (1 << bit)
        added = torch.where(table.view(-1)[row + further - 1] <= uniform, further, added)
    return added / _wide(2.0 ** power.double(), 4) - levels.double() / 255


@lru_cache(maxsize=1)
def _poisson_table() -> Tensor:
    """P(count <= k) where white is 1, 2, 4, ..., 256 photons, for each of 256 levels and for k below 512."""
    rate = 2.0 ** torch.arange(9, dtype=torch.float64)[:, None, None] * torch.arange(256)[:, None] / 255
    return torch.special.gammaincc(torch.arange(1, 513, dtype=torch.float64), rate)


def _inside(canvas: Canvas) -> Tensor:
    """(B, 1, H, W): which pixels of the canvas are the image's."""
    height, width = (torch.arange(side, device=canvas.height.device) for side in canvas.images.shape[-2:])
    return (height[:, None] < _wide(canvas.height, 4)) & (width < _wide(canvas.width, 4))


# --- JPEG ---


def compressed(canvas: Canvas, stage: First, draws: Draws) -> Canvas:
    return _compressed(canvas, draws.uniform(*stage.jpeg_quality))


def _compressed(canvas: Canvas, quality: Tensor) -> Canvas:
    """Whole blocks, filled up with the image's last row and column."""
    rows, columns = (
        torch.minimum(torch.arange(-(-side // 16) * 16, device=sizes.device), sizes[:, None] - 1)
        for side, sizes in zip(canvas.images.shape[-2:], (canvas.height, canvas.width), strict=True)
    )
    images = jpeg(_taken(canvas.images, rows, columns), quality)
    return Canvas(images[..., : canvas.images.shape[-2], : canvas.images.shape[-1]], canvas.height, canvas.width)


def _where(condition: Tensor, yes: Canvas, no: Canvas) -> Canvas:
    return Canvas(torch.where(_wide(condition, 4), yes.images, no.images), yes.height, yes.width)


def _wide(numbers: Tensor, dims: int) -> Tensor:
    """(B,) -> (B, 1, ..., 1)."""
    return numbers.view(-1, *[1] * (dims - 1))
