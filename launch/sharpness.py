"""A metric for launch/compare_gans.sh that needs no published weights: how far the sharpness of SR is from that of HR.

Sharpness is the mean absolute difference of neighbouring pixels. The metric is |sharpness(sr) / sharpness(hr) - 1|: a blurred
image has too little, stripes and noise are too much, and where they lie is not looked at.
"""

from __future__ import annotations

from torch import Tensor

from sr_dist.evaluation.protocol import Protocol, inside_border

BETTER = {"sharpness_gap": "lower"}
DIGITS = {"sharpness_gap": 3}


def per_image(sr: Tensor, hr: Tensor, protocol: Protocol, grey: bool) -> dict[str, list[float]]:
    """sr, hr: (B, 3, H, W) in [0, 1]."""
    ratio = sharpness(inside_border(sr, protocol)) / sharpness(inside_border(hr, protocol)).clamp(min=1e-6)
    return {"sharpness_gap": (ratio - 1).abs().tolist()}


def sharpness(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B,)"""
    return sum(images.diff(dim=dim).abs().mean((1, 2, 3)) for dim in (2, 3)) / 2
