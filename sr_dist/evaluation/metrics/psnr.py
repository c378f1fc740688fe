"""Peak signal-to-noise ratio per image, of Y and of RGB, in dB."""

from __future__ import annotations

import torch
from torch import Tensor

from sr_dist.evaluation.protocol import BEST_PSNR, Protocol, luma, stored_tiles

BETTER = {"psnr_y": "higher", "psnr_rgb": "higher"}
DIGITS = {"psnr_y": 2, "psnr_rgb": 2}
RANGE = {"psnr_y": (0, 100), "psnr_rgb": (0, 100)}


def per_image(sr: Tensor, hr: Tensor, protocol: Protocol, grey: bool) -> dict[str, list[float]]:
    """nan if the border leaves no pixel."""
    errors = hr.new_zeros(2, len(hr), dtype=torch.float64)  # sums of squares per image, of Y and of RGB
    pixels = 0
    for x, y in stored_tiles(sr, hr, protocol):
        errors[0] += (luma(x, protocol, grey) - luma(y, protocol, grey)).square().sum((1, 2, 3))
        errors[1] += ((x - y) * 255).square().sum((1, 2, 3)) / 3
        pixels += x.shape[-2] * x.shape[-1]
    values = (10 * (255**2 * pixels / errors).log10()).clamp(max=BEST_PSNR)  # nan for no pixels: 0 / 0
    return dict(zip(BETTER, values.tolist(), strict=True))
