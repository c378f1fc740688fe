"""PSNR and SSIM of one image under every combination of conditions; the rows of `conditions.AXES` in numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sr_dist.core.colour import full_y, studio_y
from sr_dist.core.resize import rounded
from sr_dist.evaluation.conditions import Conditions
from sr_dist.evaluation.protocol import BEST_PSNR

Key = tuple[str, ...]  # values of axes, in the order of Conditions
Forms = list[tuple[list[str], Tensor]]  # the names of a form of the pixels, and the image
CHANNELS = ("y_rounded", "y", "y_full", "rgb")
MOST_BYTES = 2**29  # of local means that are stored of HR; those beyond are computed for every SR
RADIUS, SIGMA, UNIFORM = 5, 1.5, 7
WINDOWS = {"gaussian_zero": "constant", "gaussian_reflect": "mirror", "gaussian_replicate": "nearest"}  # names of scipy


class Errors(NamedTuple):
    """What PSNR needs of one image: the MSE of each channel, the number of pixels, the ends of HR's values."""

    mse: tuple[float, ...]
    pixels: int
    low: float
    high: float


def pixel_forms(sr: Tensor) -> Forms:
    """(3, H, W) -> how programs store it before they compare: the names of each form, which may have the same values."""
    clipped = sr.clamp(0, 1)
    forms = {"rounded": rounded(clipped), "floats": clipped, "unclipped": sr, "truncated": (clipped * 255 + 1e-9).floor() / 255}
    result: Forms = []
    for name, form in forms.items():
        same = next((names for names, other in result if torch.equal(form, other)), None)
        if same is None:
            result.append(([name], form))
        else:
            same.append(name)
    return result


def planes(image: Tensor, channel: str, grey: bool) -> np.ndarray:
    """(3, H, W) in [0, 1] -> (1 or 3, H, W) in [0, 255]. An image that is stored grey is its own Y."""
    image = image.double()
    if channel in ("rgb", "channels"):
        return (image * 255).numpy()
    if grey or channel == "y_full":
        return full_y(image).numpy()
    y = studio_y(image)
    return ((y + 0.5).floor() if channel == "y_rounded" else y).numpy()


class Target:
    """HR of one image, with which every SR is compared. What depends on HR alone is computed once."""

    def __init__(self, hr: Tensor, borders: Sequence[int], grey: bool) -> None:
        self.borders, self.grey = borders, grey
        self.planes = {channel: planes(hr, channel, grey) for channel in CHANNELS}
        self._ends: dict[tuple[str, int], tuple[float, float]] = {}
        self._means: dict[tuple[str, int, int, str], np.ndarray] = {}
        self._bytes = 0

    def ends(self, channel: str, border: int) -> tuple[float, float]:
        """The smallest and the largest value inside a border."""
        if (channel, border) not in self._ends:
            inside = _inside(self.planes[channel], border)
            self._ends[channel, border] = float(inside.min()), float(inside.max())
        return self._ends[channel, border]

    def means(self, channel: str, number: int, border: int, mode: str) -> np.ndarray:
        """(2, H, W): the local means of y and y^2 of one plane inside a border."""
        key = (channel, number, border, mode)
        if key in self._means:
            return self._means[key]
        y = _inside(self.planes[channel][number], border)
        means = _local_means((y, y * y), mode)
        if self._bytes + means.nbytes <= MOST_BYTES:
            self._means[key] = means
            self._bytes += means.nbytes
        return means


def _inside(image: np.ndarray, border: int) -> np.ndarray:
    """(..., H, W) without a border."""
    return image[..., border : image.shape[-2] - border, border : image.shape[-1] - border]


def psnr_errors(forms: Forms, target: Target) -> Iterator[tuple[Key, Errors]]:
    """((pixels, channel, border), errors) for every combination of these; a border that leaves nothing is left out."""
    for names, form in forms:
        for channel, y in target.planes.items():
            squares = (planes(form, channel, target.grey) - y) ** 2
            for border in target.borders:
                inside = _inside(squares, border)
                if inside.size:
                    mse = tuple(inside.mean((1, 2)).tolist())
                    one = Errors(mse, inside[0].size, *target.ends(channel, border))
                    yield from (((pixels, channel, str(border)), one) for pixels in names)


def psnr_of_set(key: Key, errors: Sequence[Errors]) -> Iterator[tuple[Conditions, float]]:
    """Every data range and every mean over the images. `key`: lr, enlarged, pixels, channel, border."""
    lr, enlarged, pixels, channel, border = key
    ranges = {"255": 255.0, "hr_max": max(one.high for one in errors), "hr_range": max(one.high - one.low for one in errors)}
    if channel.startswith("y") and channel != "y_full":
        ranges["219"] = 219.0
    for name, whole_range in ranges.items():
        own = {"hr_max": [one.high for one in errors], "hr_range": [one.high - one.low for one in errors]}.get(name)
        peaks = own or [whole_range] * len(errors)
        shared = {"lr": lr, "enlarged": enlarged, "pixels": pixels, "channel": channel, "border": border, "range": name}
        plain = [float(np.mean(one.mse)) for one in errors]
        weights = [one.pixels for one in errors]
        means = {
            "images": _mean([psnr(mse, peak) for mse, peak in zip(plain, peaks, strict=True)]),
            "mse": psnr(_mean(plain), whole_range),
            "pooled": psnr(float(np.average(plain, weights=weights)), whole_range),
        }
        if len(errors) == 1:  # then all means are one
            means = {"images": means["images"]}
        for mean, value in means.items():
            yield {**shared, "mean": mean}, value
        if channel == "rgb":
            each = [_mean([psnr(mse, peak) for mse in one.mse]) for one, peak in zip(errors, peaks, strict=True)]
            yield {**shared, "channel": "channels", "mean": "images"}, _mean(each)


def psnr(mse: float, peak: float) -> float:
    if mse == 0 or peak == 0:
        return BEST_PSNR
    return min(10 * math.log10(peak**2 / mse), BEST_PSNR)


def ssim_values(forms: Forms, target: Target) -> Iterator[tuple[Key, float]]:
    """((pixels, channel, border, window, covariance, range), value) for every combination of these."""
    for names, form in forms:
        for channel in CHANNELS:
            x = planes(form, channel, target.grey)
            ranges = {border: _ranges(x, target, channel, border) for border in target.borders}
            values: dict[Key, list[float]] = {}
            for number, plane in enumerate(x):
                for key, value in _ssim_of_planes(plane, target, channel, number, ranges):
                    values.setdefault(key, []).append(value)
            means = {key: _mean(several) for key, several in values.items()}
            yield from (((pixels, channel, *key), mean) for key, mean in means.items() for pixels in names)


def _ranges(x: np.ndarray, target: Target, channel: str, border: int) -> dict[str, float]:
    """The data ranges of images, (C, H, W), without a border; none where too few pixels are left."""
    if min(x.shape[1:]) - 2 * border <= 2 * RADIUS:
        return {}
    (low, high), inside = target.ends(channel, border), _inside(x, border)
    return {"255": 255.0, "hr_range": high - low, "pair_range": max(high - low, float(inside.max() - inside.min()))}


def _ssim_of_planes(
    x: np.ndarray, target: Target, channel: str, number: int, ranges: Mapping[int, Mapping[str, float]]
) -> Iterator[tuple[Key, float]]:
    """((border, window, covariance, range), value) of (H, W) and that plane of HR. Valid positions do not depend on the border,
    so those maps are computed once and cut."""

    def moments(border: int, mode: str) -> np.ndarray:
        """(5, H, W): the local means of x, x^2, x y, y and y^2."""
        a, b = _inside(x, border), _inside(target.planes[channel][number], border)
        return np.concatenate([_local_means((a, a * a, a * b), mode), target.means(channel, number, border, mode)])

    whole = {"gaussian": (moments(0, "mirror"), RADIUS), "uniform7": (moments(0, ""), UNIFORM // 2)}
    for border, of_border in ranges.items():
        if not of_border:
            continue
        fields = {name: _inside(of_image, border + half) for name, (of_image, half) in whole.items()}
        fields |= {name: moments(border, mode) for name, mode in WINDOWS.items()}
        for window, means in fields.items():
            count = UNIFORM**2 if window == "uniform7" else (2 * RADIUS + 1) ** 2
            for covariance, factor in (("population", 1.0), ("sample", count / (count - 1))):
                for name, value in of_border.items():
                    yield (str(border), window, covariance, name), _ssim(means, factor, value)


def _local_means(fields: Sequence[np.ndarray], mode: str) -> np.ndarray:
    """(C, H, W): the local mean of each field. An empty mode: a uniform window."""
    from scipy.ndimage import correlate1d, uniform_filter  # spares 0.3 s at the start

    if not mode:
        return np.stack([uniform_filter(field, UNIFORM) for field in fields])
    offsets = np.arange(-RADIUS, RADIUS + 1)
    kernel = np.exp(-(offsets**2) / (2 * SIGMA**2))
    kernel /= kernel.sum()
    return np.stack([correlate1d(correlate1d(field, kernel, 0, mode=mode), kernel, 1, mode=mode) for field in fields])


def _ssim(moments: np.ndarray, factor: float, data_range: float) -> float:
    mean_x, xx, xy, mean_y, yy = moments
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    var_x, var_y, cov = factor * (xx - mean_x**2), factor * (yy - mean_y**2), factor * (xy - mean_x * mean_y)
    top = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
    bottom = (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return float((top / bottom).mean()) if bottom.all() else math.nan


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
