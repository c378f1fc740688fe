"""Synthetic photographs."""

from __future__ import annotations

import numpy as np


def made_photo(number: int, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8 with slopes, an edge, texture and noise; no two windows are alike."""
    random = np.random.default_rng(number)
    y, x = np.mgrid[0:height, 0:width] / 48
    waves = [np.sin(2 * np.pi * (a * x + b * y + c)) for a, b, c in random.uniform(0.3, 3, (3, 3))]
    image = np.stack(waves, -1) * 60 + 110
    image += 50 * (x * random.normal() + y * random.normal() > random.normal() / 4)[..., None]
    image += random.normal(0, 8, image.shape)
    return image.clip(0, 255).astype(np.uint8)
