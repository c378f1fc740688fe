"""Bicubic interpolation as different programs do it: what LR was made with changes PSNR by up to a decibel.

matlab            imresize of 8-bit images: antialiased, a = -1/2, mirrored edges, rounded after each axis
matlab_float      imresize of floats, LR not rounded
pil               Image.resize: antialiased, a = -1/2, rounded after each axis
opencv            cv2.resize(INTER_CUBIC): a = -3/4, not antialiased, coefficients of 11 bits
torch             F.interpolate(mode="bicubic"): a = -3/4, not antialiased, rounded at the end
torch_antialias   the same with antialias=True: a = -1/2, rounded at the end
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sr_dist.core.resize import imresize, rounded

Resizer = Callable[[Tensor, tuple[int, int]], Tensor]  # (3, H, W) of 8-bit levels / 255, float64 -> (3, h, w) in [0, 1], float64


def matlab(image: Tensor, size: tuple[int, int]) -> Tensor:
    return imresize(image, size[0] / image.shape[-2], to_8_bit=True)


def matlab_float(image: Tensor, size: tuple[int, int]) -> Tensor:
    return imresize(image, size[0] / image.shape[-2])


def pil(image: Tensor, size: tuple[int, int]) -> Tensor:
    return _of_levels(np.asarray(Image.fromarray(_levels(image)).resize(size[::-1], Image.Resampling.BICUBIC)))


def opencv(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Without OpenCV, equal to version 5.0 when an image is shrunk by a whole number; when it is enlarged by 3 or 8, some values
    differ by one level. The vertical sum is of floats, halves are rounded to even."""
    levels = _levels(image).astype(np.int64)  # (H, W, 3)
    rows, row_weights = _cubic_taps(levels.shape[0], size[0])
    columns, column_weights = _cubic_taps(levels.shape[1], size[1])
    across = (levels[:, columns] * column_weights[None, :, :, None]).sum(2).astype(np.float32)  # (H, w, 3)
    share = row_weights.astype(np.float32) * np.float32(1 / 2048**2)
    result = np.zeros((*size, 3), np.float32)
    for tap in (3, 2, 1, 0):
        result = across[rows[:, tap]] * share[:, tap, None, None] + result
    return _of_levels(np.clip(np.rint(result), 0, 255).astype(np.uint8))


def torch_bicubic(image: Tensor, size: tuple[int, int]) -> Tensor:
    return rounded(F.interpolate(image[None], size, mode="bicubic", align_corners=False)[0].clamp(0, 1))


def torch_antialias(image: Tensor, size: tuple[int, int]) -> Tensor:
    return rounded(F.interpolate(image[None], size, mode="bicubic", align_corners=False, antialias=True)[0].clamp(0, 1))


RESIZERS: Mapping[str, Resizer] = {
    "matlab": matlab,
    "matlab_float": matlab_float,
    "pil": pil,
    "opencv": opencv,
    "torch": torch_bicubic,
    "torch_antialias": torch_antialias,
}


def _cubic_taps(size: int, out: int) -> tuple[np.ndarray, np.ndarray]:
    """(out, 4): the four pixels of each output pixel, edges repeated, and their weights in 1/2048."""
    position = ((np.arange(out) + 0.5) * (size / out) - 0.5).astype(np.float32)
    low = np.floor(position).astype(int)
    x, a, one = (position - low).astype(np.float32), np.float32(-0.75), np.float32(1)
    first = ((a * (x + 1) - 5 * a) * (x + 1) + 8 * a) * (x + 1) - 4 * a
    second = ((a + 2) * x - (a + 3)) * x * x + 1
    third = ((a + 2) * (one - x) - (a + 3)) * (one - x) * (one - x) + 1
    weights = np.stack([first, second, third, one - first - second - third], 1)
    return np.clip(low[:, None] + np.arange(-1, 3), 0, size - 1), np.rint(weights * 2048).astype(np.int64)


def _levels(image: Tensor) -> np.ndarray:
    return (image * 255).round().byte().permute(1, 2, 0).numpy()


def _of_levels(levels: np.ndarray) -> Tensor:
    return torch.from_numpy(levels.copy()).permute(2, 0, 1).double() / 255
