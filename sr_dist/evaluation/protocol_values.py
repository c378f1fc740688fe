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
RADIUS, SIGMA, UNIFORM = 5, 1.5, 7
WINDOWS = {"gaussian_zero": "constant", "gaussian_reflect": "mirror", "gaussian_replicate": "nearest"}  # names of scipy


class Errors(NamedTuple):
    """What PSNR needs of one image: the MSE of each channel, the number of pixels, the ends of HR's values."""

    mse: tuple[float, ...]
    pixels: int
    low: float
    high: float


def pixel_forms(sr: Tensor) -> list[tuple[list[str], Tensor]]:
    """(3, H, W) -> how programs store it before they compare: the names of each form, which may have the same values."""
    clipped = sr.clamp(0, 1)
    forms = {"rounded": rounded(clipped), "floats": clipped, "unclipped": sr, "truncated": (clipped * 255 + 1e-9).floor() / 255}
    result: list[tuple[list[str], Tensor]] = []
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


def psnr_errors(sr: Tensor, hr: Tensor, borders: Sequence[int], grey: bool) -> Iterator[tuple[Key, Errors]]:
    """((pixels, channel, border), errors) for every combination of these; a border that leaves nothing is left out."""
    for names, form in pixel_forms(sr):
        for channel in ("y_rounded", "y", "y_full", "rgb"):
            x, y = planes(form, channel, grey), planes(hr, channel, grey)
            squares = (x - y) ** 2
            for border in borders:
                inside = squares[:, border : squares.shape[1] - border, border : squares.shape[2] - border]
                if inside.size:
                    target = y[:, border : y.shape[1] - border, border : y.shape[2] - border]
                    mse = tuple(inside.mean((1, 2)).tolist())
                    one = Errors(mse, inside[0].size, float(target.min()), float(target.max()))
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


def ssim_values(sr: Tensor, hr: Tensor, borders: Sequence[int], grey: bool) -> Iterator[tuple[Key, float]]:
    """((pixels, channel, border, window, covariance, range), value) for every combination of these."""
    for names, form in pixel_forms(sr):
        for channel in ("y_rounded", "y", "y_full", "rgb"):
            x, y = planes(form, channel, grey), planes(hr, channel, grey)
            ranges = {border: _ranges(x, y, border) for border in borders}
            values: dict[Key, list[float]] = {}
            for one, other in zip(x, y, strict=True):
                for key, value in _ssim_of_planes(one, other, ranges):
                    values.setdefault(key, []).append(value)
            means = {key: _mean(several) for key, several in values.items()}
            yield from (((pixels, channel, *key), mean) for key, mean in means.items() for pixels in names)


def _ranges(x: np.ndarray, y: np.ndarray, border: int) -> dict[str, float]:
    """The data ranges of images, (C, H, W), without a border; none where too few pixels are left."""
    inner = (slice(None), slice(border, x.shape[1] - border), slice(border, x.shape[2] - border))
    a, b = x[inner], y[inner]
    if min(a.shape[1:]) <= 2 * RADIUS:
        return {}
    span = float(b.max() - b.min())
    return {"255": 255.0, "hr_range": span, "pair_range": max(span, float(a.max() - a.min()))}


def _ssim_of_planes(x: np.ndarray, y: np.ndarray, ranges: Mapping[int, Mapping[str, float]]) -> Iterator[tuple[Key, float]]:
    """((border, window, covariance, range), value) of (H, W). Valid positions do not depend on the border, so those maps are
    computed once and cut."""
    whole = {"gaussian": (_moments(x, y, "mirror"), RADIUS), "uniform7": (_moments(x, y, ""), UNIFORM // 2)}
    for border, of_border in ranges.items():
        if not of_border:
            continue
        inner = (slice(border, x.shape[0] - border), slice(border, x.shape[1] - border))
        fields = {
            name: moments[:, border + half : x.shape[0] - border - half, border + half : x.shape[1] - border - half]
            for name, (moments, half) in whole.items()
        }
        fields |= {name: _moments(x[inner], y[inner], mode) for name, mode in WINDOWS.items()}
        for window, moments in fields.items():
            count = UNIFORM**2 if window == "uniform7" else (2 * RADIUS + 1) ** 2
            for covariance, factor in (("population", 1.0), ("sample", count / (count - 1))):
                for name, value in of_border.items():
                    yield (str(border), window, covariance, name), _ssim(moments, factor, value)


def _moments(x: np.ndarray, y: np.ndarray, mode: str) -> np.ndarray:
    """(5, H, W): the local means of x, y, x^2, y^2 and x y. An empty mode: a uniform window."""
    from scipy.ndimage import correlate1d, uniform_filter  # spares 0.3 s at the start

    fields = (x, y, x * x, y * y, x * y)
    if not mode:
        return np.stack([uniform_filter(field, UNIFORM) for field in fields])
    offsets = np.arange(-RADIUS, RADIUS + 1)
    kernel = np.exp(-(offsets**2) / (2 * SIGMA**2))
    kernel /= kernel.sum()
    return np.stack([correlate1d(correlate1d(field, kernel, 0, mode=mode), kernel, 1, mode=mode) for field in fields])


def _ssim(moments: np.ndarray, factor: float, data_range: float) -> float:
    mean_x, mean_y, xx, yy, xy = moments
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    var_x, var_y, cov = factor * (xx - mean_x**2), factor * (yy - mean_y**2), factor * (xy - mean_x * mean_y)
    top = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
    bottom = (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return float((top / bottom).mean()) if bottom.all() else math.nan


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
