"""Fréchet Inception distance of restored images to HR, each resized to 299 x 299."""

from __future__ import annotations

from sr_dist.evaluation.distances.features import Estimate, Features, frechet_distances, halves, jackknifed
from sr_dist.evaluation.distances.frechet import Array

BETTER = {"fid": "lower"}
NEEDS = {"fid": "inception-2015-12-05.pt"}
DIGITS = {"fid": 2}
RANGE = {"fid": (0, None)}
VIEW = "whole"


def of_sets(sr: Features, hr: Features, labels: Array) -> Estimate:
    return jackknifed(sr, hr)


def floor(hr: Features, labels: Array) -> float:
    """The distance between two halves of the HR images."""
    return frechet_distances([halves(hr)])[0]
