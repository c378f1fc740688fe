"""Peak signal-to-noise ratio per image, of Y and of RGB, in dB."""

from __future__ import annotations

import torch
from torch import Tensor

from sr_dist.evaluation.protocol import BEST_PSNR, Protocol, planes, tiles

BETTER = {"psnr_y": "higher", "psnr_rgb": "higher"}
DIGITS = {"psnr_y": 2, "psnr_rgb": 2}
RANGE = {"psnr_y": (0, 100), "psnr_rgb": (0, 100)}


@torch.no_grad()
def per_image(sr: Tensor, hr: Tensor, protocol: Protocol, grey: bool) -> dict[str, list[float]]:
    """nan if the border leaves no pixel."""
    errors = hr.new_zeros(len(hr), 4, dtype=torch.float64)  # sums of squares per image, of Y, R, G and B
    pixels = 0
    for x, y in tiles(sr, hr, protocol):
        errors += planes(x, protocol, grey).sub_(planes(y, protocol, grey)).square_().sum((2, 3))
        pixels += x.shape[-2] * x.shape[-1]
    both = torch.stack([errors[:, 0], errors[:, 1:].sum(1) / 3])
    values = (10 * (255**2 * pixels / both).log10()).clamp(max=BEST_PSNR)  # nan for no pixels: 0 / 0
    return dict(zip(BETTER, values.tolist(), strict=True))
