"""Luma: the brightness of RGB images."""

from __future__ import annotations

from torch import Tensor

from sr_dist.core.constants import numbers

LUMA = (0.299, 0.587, 0.114)  # the weights of red, green and blue in ITU-R BT.601


def luma(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W)"""
    return (images * numbers(LUMA, images.dtype, images.device)[:, None, None]).sum(1, keepdim=True)
