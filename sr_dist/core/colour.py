"""Luma: the brightness of RGB images, by ITU-R BT.601."""

from __future__ import annotations

from torch import Tensor

from sr_dist.core.constants import numbers

LUMA = (0.299, 0.587, 0.114)  # the weights of red, green and blue
STUDIO = (65.481, 128.553, 24.966)  # 219 of 255 levels: Y from 16 to 235


def luma(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W)"""
    return (images * numbers(LUMA, images.dtype, images.device)[:, None, None]).sum(1, keepdim=True)


def full_y(images: Tensor) -> Tensor:
    """(..., 3, H, W) in [0, 1] -> Y of full range, (..., 1, H, W) in [0, 255]; of three equal channels the channel."""
    red, green, blue = images.split(1, -3)
    return 255 * (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)


def studio_y(images: Tensor) -> Tensor:
    """(..., 3, H, W) in [0, 1] -> Y of studio range, (..., 1, H, W) in [16, 235], as MATLAB's rgb2ycbcr, not rounded."""
    red, green, blue = images.split(1, -3)
    return 16 + STUDIO[0] * red + STUDIO[1] * green + STUDIO[2] * blue
