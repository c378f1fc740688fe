"""Validation sets for tests, as batches."""

from __future__ import annotations

import numpy as np
import torch

from sr_dist.data.degradations import bicubic
from sr_dist.data.folder_images import LRFolder
from sr_dist.data.image_pairs import Batches, ImagePairs, load, numbers_of_this_rank
from sr_dist.data.images import open_images


def scored(source, scale=2, size=4, workers=0, limit=None) -> list[ImagePairs]:
    result = batches(source, scale, size, limit)
    return list(load(result, numbers_of_this_rank(result), workers))


def batches(source, scale=2, size=4, limit=None, lr=None) -> Batches:
    images = open_images(str(source), limit, lr=LRFolder(lr, scale))
    return Batches(images, scale, bicubic.build(bicubic.Config(), scale), size)


def levels(image: torch.Tensor) -> np.ndarray:
    return (image * 255).round().permute(1, 2, 0).numpy().astype(np.uint8)
