"""LR as in Real-ESRGAN: two random rounds of what cameras, editors and the web do to a photograph.

    first    blur -> resize -> noise -> JPEG
    second   blur (sometimes) -> resize -> noise
             then resize to the size of LR with a sinc filter, and JPEG, in either order; finally 8 bits

Blur: isotropic and anisotropic kernels, Gaussian, generalized Gaussian (exp(-q^beta / 2)) and plateau-shaped (1 / (1 + q^beta)),
with q = x^T S^-1 x, and circular sinc filters, which ring like oversharpened images. Resize: up, down or keep; area, bilinear or
bicubic, without antialiasing. Noise: Gaussian, or Poisson as from counts of up to 256 photons, per colour or grey.

All random numbers of a sample, including the noise of each pixel, are hashes of its own seed, so a sample is the same alone, in
any batch and on any rank. The whole batch is processed at once. Sizes differ from sample to sample, so each image lies in the
upper left corner of a canvas of the largest possible size, and pixels outside an image are mirrored or repeated by index.
Arithmetic is in float64: the last bits of a product depend on how a batch is cut, and JPEG's rounding makes levels of them.

The authors sharpen HR before they degrade it (`sharpen: true`), and compare content terms with sharpened HR, which those terms'
own `sharpen: true` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, NamedTuple

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from sr_dist.core.colour import luma
from sr_dist.core.config import Fraction, Settings
from sr_dist.core.constants import once
from sr_dist.core.contracts import Degradation
from sr_dist.core.keyed_random import Draws
from sr_dist.core.resize import rounded
from sr_dist.core.sharpen import sharpened
from sr_dist.data.jpeg_compression import jpeg

NUM_MODES = 3  # area, bilinear and bicubic, with equal probability


def _ordered(span: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= span[0] <= span[1]:
        raise ValueError(f"{list(span)} is not a range from low to high")
    return span


def _not_all_zero(weights: tuple[float, ...]) -> tuple[float, ...]:
    if not sum(weights) > 0:
        raise ValueError("the weights are all zero")
    return weights


Weight = Annotated[float, Field(ge=0)]
Range = Annotated[tuple[float, float], AfterValidator(_ordered)]
ThreeWeights = Annotated[tuple[Weight, Weight, Weight], AfterValidator(_not_all_zero)]
SixWeights = Annotated[tuple[Weight, Weight, Weight, Weight, Weight, Weight], AfterValidator(_not_all_zero)]


class First(Settings):
    """The first round, with the values of Real-ESRGAN."""

    blur_probability: Fraction = 1.0
    sinc_probability: Fraction = 0.1
    """Of a sinc filter in place of a Gaussian."""
    kernel_weights: SixWeights = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    """Of Gaussian, generalized Gaussian and plateau-shaped kernels: isotropic and anisotropic of each."""
    blur_sigma: Range = (0.2, 3.0)
    """In pixels."""
    generalised_beta: Range = (0.5, 4.0)
    """Half of the draws are below 1."""
    plateau_beta: Range = (1.0, 2.0)
    resize_weights: ThreeWeights = (0.2, 0.7, 0.1)
    """Of up, down and keep."""
    resize_range: Range = (0.15, 1.5)
    gaussian_probability: Fraction = 0.5
    """Of Gaussian noise; the rest is Poisson noise."""
    noise_sigma: Range = (1.0, 30.0)
    """In levels of 255."""
    poisson_scale: Range = (0.05, 3.0)
    grey_probability: Fraction = 0.4
    jpeg_quality: Range = (30.0, 95.0)


class Second(First):
    """The second round."""

    blur_probability: Fraction = 0.8
    blur_sigma: Range = (0.2, 1.5)
    resize_weights: ThreeWeights = (0.3, 0.4, 0.3)
    resize_range: Range = (0.3, 1.2)
    noise_sigma: Range = (1.0, 25.0)
    poisson_scale: Range = (0.05, 2.5)


class Config(Settings):
    first: First = First()
    second: Second = Second()
    kernel_size: Annotated[int, Field(ge=7, le=51)] = 21
    """The largest size of a kernel. Sizes are odd and at least 7."""
    final_sinc_probability: Fraction = 0.8
    sharpen: bool = False
    """Degrade sharpened HR, by Real-ESRGAN's unsharp masking."""


def build(config: Config, scale: int) -> Degradation:
    def degrade(hr: Tensor, seeds: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H / scale, W / scale)"""
        with torch.autocast(hr.device.type, enabled=False):
            images = sharpened(hr.double()) if config.sharpen else hr.double()
            return degrade_twice(images, seeds, scale, config).to(hr.dtype)

    return degrade


class Canvas(NamedTuple):
    """Images of different sizes in the upper left corners of one tensor."""

    images: Tensor  # (B, C, canvas height, canvas width)
    height: Tensor  # (B,) the size of each image
    width: Tensor


def degrade_twice(hr: Tensor, seeds: Tensor, scale: int, config: Config) -> Tensor:
    draws = Draws(seeds)
    height, width = (math.ceil(side / scale) for side in hr.shape[-2:])
    whole = [torch.full((len(hr),), side, device=hr.device) for side in hr.shape[-2:]]
    first, second = config.first, config.second

    canvas = Canvas(hr, *whole)
    canvas = blur(canvas, first, config.kernel_size, draws)
    canvas = resize_randomly(canvas, first, hr.shape[-2], hr.shape[-1], draws)
    canvas = add_noise(canvas, first, draws)
    canvas = compress(canvas, first, draws)

    canvas = blur(canvas, second, config.kernel_size, draws)
    canvas = resize_randomly(canvas, second, height, width, draws)
    canvas = add_noise(canvas, second, draws)
    early = draws.chance(0.5)  # JPEG before the last resize, otherwise after it
    quality = draws.uniform(*second.jpeg_quality)
    canvas = _where(early, _compress(canvas, quality), canvas)
    canvas = resize_to(canvas, torch.full_like(whole[0], height), torch.full_like(whole[1], width), height, width, draws)
    canvas = final_sinc(canvas, config, draws)
    canvas = _where(early, canvas, _compress(canvas, quality))
    return rounded(canvas.images)


# --- Blur ---


def blur(canvas: Canvas, stage: First, largest: int, draws: Draws) -> Canvas:
    size = 7 + 2 * torch.floor(draws.uniform(0, (largest - 7) // 2 + 1)).long()  # odd, 7 to the largest
    ring = sinc(sinc_cutoff(size, draws), size, largest)
    bell = gaussian_kernels(stage, size, largest, draws)
    kernels = torch.where(_expand(draws.chance(stage.sinc_probability), 3), ring, bell)
    return _where(draws.chance(stage.blur_probability), filter_images(canvas, kernels), canvas)


def final_sinc(canvas: Canvas, config: Config, draws: Draws) -> Canvas:
    largest = config.kernel_size
    size = 7 + 2 * torch.floor(draws.uniform(0, (largest - 7) // 2 + 1)).long()
    kernels = sinc(draws.uniform(math.pi / 3, math.pi), size, largest)
    return _where(draws.chance(config.final_sinc_probability), filter_images(canvas, kernels), canvas)


def sinc_cutoff(size: Tensor, draws: Draws) -> Tensor:
    """Small kernels have no low cutoff, because it needs a larger size."""
    low = torch.where(size < 13, math.pi / 3, math.pi / 5)
    return low + (math.pi - low) * draws.uniform()


def sinc(cutoff: Tensor, size: Tensor, largest: int) -> Tensor:
    """The circular low-pass filter c J1(c r) / (2 pi r), zero outside its size: (B, largest, largest); each sums to one."""
    y, x = _grid(largest, cutoff.device)
    radius, cutoff = torch.sqrt(x**2 + y**2), _expand(cutoff, 3)
    around = cutoff * torch.special.bessel_j1(cutoff * radius) / (2 * math.pi * radius.clamp(min=1))
    return _zero_outside(torch.where(radius == 0, cutoff**2 / (4 * math.pi), around), size)


def gaussian_kernels(stage: First, size: Tensor, largest: int, draws: Draws) -> Tensor:
    """(B, largest, largest), of all six kinds; each sums to one."""
    kind = draws.choice(stage.kernel_weights)
    along, across = draws.uniform(*stage.blur_sigma), draws.uniform(*stage.blur_sigma)
    angle = draws.uniform(-math.pi, math.pi)
    generalised, plateau = (_beta(span, draws) for span in (stage.generalised_beta, stage.plateau_beta))
    across = torch.where(kind % 2 == 0, along, across)

    y, x = _grid(largest, size.device)
    cos, sin = _expand(angle.cos(), 3), _expand(angle.sin(), 3)
    q = ((cos * x + sin * y) / _expand(along, 3)) ** 2 + ((cos * y - sin * x) / _expand(across, 3)) ** 2
    exponential = torch.exp(-0.5 * q ** _expand(torch.where(kind < 2, torch.ones_like(angle), generalised), 3))
    return _zero_outside(torch.where(_expand(kind < 4, 3), exponential, 1 / (1 + q ** _expand(plateau, 3))), size)


def _beta(span: tuple[float, float], draws: Draws) -> Tensor:
    low, high = draws.uniform(min(span[0], 1.0), 1.0), draws.uniform(max(span[0], 1.0), max(span[1], 1.0))
    return torch.where(draws.chance(0.5), low, high)


def _grid(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    coordinates = torch.arange(size, dtype=torch.float64, device=device) - size // 2
    return coordinates[:, None], coordinates


def _zero_outside(kernels: Tensor, size: Tensor) -> Tensor:
    y, x = _grid(kernels.shape[-1], kernels.device)
    kernels = torch.where(torch.maximum(y.abs(), x.abs()) <= _expand(size // 2, 3), kernels, 0.0)
    return kernels / kernels.sum((1, 2), keepdim=True)


def filter_images(canvas: Canvas, kernels: Tensor) -> Canvas:
    """Filters each image with its own kernel, by Fourier transforms. Images are mirrored at their borders, edge not repeated."""
    reach = kernels.shape[-1] // 2
    rows, columns = (
        _mirror(torch.arange(-reach, side + reach, device=sizes.device), sizes)
        for side, sizes in zip(canvas.images.shape[-2:], (canvas.height, canvas.width), strict=True)
    )
    padded = _take(canvas.images, rows, columns)
    shape = padded.shape[-2:]
    spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(kernels, s=shape)[:, None].conj()  # correlation, as in filter2D
    images = torch.fft.irfft2(spectrum, s=shape)[..., : shape[0] - 2 * reach, : shape[1] - 2 * reach]
    return Canvas(images, canvas.height, canvas.width)


def _mirror(indices: Tensor, sizes: Tensor) -> Tensor:
    """(n,) indices and (B,) sizes -> (B, n) indices inside each size."""
    period = (2 * (sizes - 1)).clamp(min=1)[:, None]
    inside = indices % period
    return torch.where(inside < sizes[:, None], inside, period - inside)


def _take(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(B, C, H, W) at (B, h) rows and (B, w) columns -> (B, C, h, w)."""
    samples = torch.arange(len(images), device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[samples, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


# --- Resize ---


def resize_randomly(canvas: Canvas, stage: First, height: int, width: int, draws: Draws) -> Canvas:
    """Resizes each image to a random multiple of (height, width)."""
    direction = draws.choice(stage.resize_weights)
    low, high = stage.resize_range
    up, down = draws.uniform(max(low, 1.0), max(high, 1.0)), draws.uniform(min(low, 1.0), min(high, 1.0))
    factor = torch.where(direction == 0, up, torch.where(direction == 1, down, torch.ones_like(up)))
    heights, widths = ((side * factor).floor().long().clamp(min=1) for side in (height, width))
    largest = max(high, 1.0)
    return resize_to(canvas, heights, widths, math.floor(height * largest), math.floor(width * largest), draws)


def resize_to(canvas: Canvas, heights: Tensor, widths: Tensor, height: int, width: int, draws: Draws) -> Canvas:
    """Resizes each image to its (heights, widths), on a canvas of (height, width), in a random mode."""
    mode = draws.choice([1.0] * NUM_MODES)
    old_height, old_width = canvas.images.shape[-2:]
    both = resize_matrix(  # both axes at once: half the kernels
        torch.cat([canvas.height, canvas.width]), torch.cat([heights, widths]),
        max(old_height, old_width), max(height, width), torch.cat([mode, mode]),
    )  # fmt: skip
    rows, columns = both.chunk(2)
    rows, columns = rows[:, None, :height, :old_height], columns[:, None, :width, :old_width]
    return Canvas(rows @ canvas.images @ columns.mT, heights, widths)


def resize_matrix(sizes: Tensor, outs: Tensor, size: int, out: int, mode: Tensor) -> Tensor:
    """(B, out, size), one axis: torch's area, bilinear and bicubic (a = -3/4), from each image's size to its output size."""
    i = torch.arange(out, dtype=torch.float64, device=sizes.device)
    step = (sizes.double() / outs)[:, None]  # (B, 1)
    position = (i + 0.5) * step - 0.5  # (B, out)
    bicubic = _tap_weights(position, range(-1, 3), _cubic, sizes, size)
    bilinear = _tap_weights(position.clamp(min=0), range(2), _triangle, sizes, size)
    matrix = torch.where(_expand(mode == 2, 3), bicubic, bilinear)

    j = torch.arange(size, device=sizes.device)
    number = i.long()
    start = number * sizes[:, None] // outs[:, None]
    end = -(-(number + 1) * sizes[:, None] // outs[:, None])  # rounded up
    covered = ((j >= start[..., None]) & (j < end[..., None])).double()
    matrix = torch.where(_expand(mode == 0, 3), covered / (end - start)[..., None], matrix)
    return torch.where((i < outs[:, None])[..., None], matrix, 0.0)


def _tap_weights(position: Tensor, taps: range, kernel: Callable[[Tensor], Tensor], sizes: Tensor, size: int) -> Tensor:
    """(B, out, size): the weights of the taps around each position. Weights outside an image are added to its edge."""
    near = position.floor()[..., None] + torch.arange(taps.start, taps.stop, dtype=torch.float64, device=position.device)
    weights = kernel(position[..., None] - near)
    inside = torch.minimum(near.long().clamp(min=0), sizes[:, None, None] - 1)
    # One tap after the other, because the order of the sum determines the bits.
    matrix = torch.zeros(*position.shape, size, dtype=torch.float64, device=position.device)
    j = torch.arange(size, device=position.device)
    for tap in range(len(taps)):
        matrix = matrix + torch.where(inside[..., tap, None] == j, weights[..., tap, None], 0.0)
    return matrix


def _triangle(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _cubic(x: Tensor) -> Tensor:
    x, a = x.abs(), -0.75
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))


# --- Noise ---


def add_noise(canvas: Canvas, stage: First, draws: Draws) -> Canvas:
    shape, images = canvas.images.shape[1:], canvas.images
    grey = _expand(draws.chance(stage.grey_probability), 4)
    normal = torch.where(grey, draws.normal(1, *shape[1:]), draws.normal(*shape))
    gaussian = normal * _expand(draws.uniform(*stage.noise_sigma) / 255, 4)

    brightness = luma(images) if shape[0] == 3 else images
    uniform = torch.where(grey, draws.pixels(1, *shape[1:]), draws.pixels(*shape))
    photons = _photons(torch.where(grey, brightness, images), canvas, uniform)
    poisson = photons * _expand(draws.uniform(*stage.poisson_scale), 4)
    noise = torch.where(_expand(draws.chance(stage.gaussian_probability), 4), gaussian, poisson)
    return Canvas((images + noise).clamp(0, 1), canvas.height, canvas.width)


def _photons(images: Tensor, canvas: Canvas, uniform: Tensor) -> Tensor:
    """Poisson noise. White is as many photons as the image has levels, rounded up to a power of two."""
    levels = (images * 255).round().clamp(0, 255).long()
    inside = _inside(canvas)
    occurs = torch.zeros(len(images), 257, dtype=torch.float64, device=images.device)
    occurs.scatter_(1, torch.where(inside, levels, 256).flatten(1), 1.0)  # pixels outside the image get a level of their own
    power = torch.ceil(torch.log2(occurs[:, :256].sum(1).clamp(min=1))).long()
    table = once("poisson", _poisson_table, torch.float64, images.device)  # (9, 256, counts)
    counts = table.shape[-1]
    before = (_expand(power, 4) * 256 + levels) * counts - 1  # the entry before the row of each pixel
    last = before
    for bit in reversed(range(counts.bit_length() - 1)):  # bisection: the last k with P(count <= k) <= uniform
        candidate = last + (1 << bit)
        last = torch.where(table.view(-1)[candidate] <= uniform, candidate, last)
    return (last - before) / _expand(2.0 ** power.double(), 4) - levels.double() / 255


def _poisson_table() -> Tensor:
    """P(count <= k): (9, 256, 512) for white at 1, 2, 4, ..., 256 photons, for each of 256 levels and for each k."""
    rate = 2.0 ** torch.arange(9, dtype=torch.float64)[:, None, None] * torch.arange(256)[:, None] / 255
    return torch.special.gammaincc(torch.arange(1, 513, dtype=torch.float64), rate)


def _inside(canvas: Canvas) -> Tensor:
    """(B, 1, H, W): true for the pixels of the canvas that belong to the image."""
    height, width = (torch.arange(side, device=canvas.height.device) for side in canvas.images.shape[-2:])
    return (height[:, None] < _expand(canvas.height, 4)) & (width < _expand(canvas.width, 4))


# --- JPEG ---


def compress(canvas: Canvas, stage: First, draws: Draws) -> Canvas:
    return _compress(canvas, draws.uniform(*stage.jpeg_quality))


def _compress(canvas: Canvas, quality: Tensor) -> Canvas:
    """JPEG of whole blocks. The last row and column of an image are repeated to fill them."""
    rows, columns = (
        torch.minimum(torch.arange(-(-side // 16) * 16, device=sizes.device), sizes[:, None] - 1)
        for side, sizes in zip(canvas.images.shape[-2:], (canvas.height, canvas.width), strict=True)
    )
    images = jpeg(_take(canvas.images, rows, columns), quality)
    return Canvas(images[..., : canvas.images.shape[-2], : canvas.images.shape[-1]], canvas.height, canvas.width)


def _where(condition: Tensor, yes: Canvas, no: Canvas) -> Canvas:
    return Canvas(torch.where(_expand(condition, 4), yes.images, no.images), yes.height, yes.width)


def _expand(numbers: Tensor, dims: int) -> Tensor:
    """(B,) -> (B, 1, ..., 1)"""
    return numbers.view(-1, *[1] * (dims - 1))
