"""The mean over classes of the Fréchet Inception distance within a class."""

from __future__ import annotations

import numpy as np

from sr_dist.evaluation.distances.features import Estimate, Features, Unmeasurable, frechet_distances, halves
from sr_dist.evaluation.distances.frechet import Array

BETTER = {"class_fid": "lower"}
NEEDS = {"class_fid": "inception-2015-12-05.pt"}
DIGITS = {"class_fid": 2}
RANGE = {"class_fid": (0, None)}
VIEW = "whole"


def of_sets(sr: Features, hr: Features, labels: Array) -> Estimate:
    """`n` is the count of the smallest class."""
    masks = classes(labels, least=2)
    value = _mean(frechet_distances((sr.of(mask), hr.of(mask)) for mask in masks))
    return Estimate(value, min(int(mask.sum()) for mask in masks))


def floor(hr: Features, labels: Array) -> float:
    return _mean(frechet_distances(halves(hr.of(mask)) for mask in classes(labels, least=4)))


def classes(labels: Array, least: int) -> list[Array]:
    """The images of each class. Every image must have a class, and every class `least` images."""
    if (labels < 0).any():
        raise Unmeasurable("the images have no classes")
    numbers, counts = np.unique(labels, return_counts=True)
    if counts.min() < least:
        raise Unmeasurable(f"class {numbers[counts.argmin()]} has fewer than {least} images")
    return [labels == number for number in numbers]


def _mean(values: list[float]) -> float:
    return float(np.mean(values))
