"""Structural similarity per image, of Y and of RGB: Gaussian window 11 x 11, sigma 1.5, valid positions only."""

from __future__ import annotations

from torch import Tensor

from sr_dist.evaluation.protocol import Protocol, inside_border, luma

BETTER = {"ssim_y": "higher", "ssim_rgb": "higher"}
WINDOW = 11


def per_image(sr: Tensor, hr: Tensor, protocol: Protocol, grey: bool) -> dict[str, list[float]]:
    """nan if an image is smaller than the window."""
    sr, hr = inside_border(sr, protocol), inside_border(hr, protocol)
    return {
        "ssim_y": _ssim(luma(sr, protocol, grey), luma(hr, protocol, grey)),
        "ssim_rgb": _ssim(sr * 255, hr * 255),
    }


def _ssim(a: Tensor, b: Tensor) -> list[float]:
    from torchmetrics.functional.image import structural_similarity_index_measure  # spares seconds at the start

    if min(a.shape[-2:]) < WINDOW:
        return [float("nan")] * len(a)
    # torchmetrics pads by reflection. Published values use valid positions only, so half a window is cropped on each side.
    _, full = structural_similarity_index_measure(a, b, sigma=1.5, data_range=255.0, reduction="none", return_full_image=True)
    half = WINDOW // 2
    return full[..., half:-half, half:-half].mean((1, 2, 3)).tolist()
