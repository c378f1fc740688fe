"""Fréchet Inception distance of restored images to HR, each squeezed to 299 x 299."""

from __future__ import annotations

from sr_dist.evaluation.distances.features import Estimate, Features, distances, halves, jackknifed
from sr_dist.evaluation.distances.frechet import Array

BETTER = {"fid": "lower"}
NEEDS = {"fid": "inception-2015-12-05.pt"}
VIEW = "whole"


def of_sets(sr: Features, hr: Features, labels: Array) -> Estimate:
    return jackknifed(sr, hr)


def floor(hr: Features, labels: Array) -> float:
    """What stands between one half of the HR images and the other."""
    return distances([halves(hr)])[0]
