"""Precision of restored images: the share of SR whose features lie among those of HR. Low where SR looks unlike photographs."""

from __future__ import annotations

from sr_dist.evaluation.distances.features import Estimate, Features, halves
from sr_dist.evaluation.distances.frechet import Array
from sr_dist.evaluation.distances.neighbours import share_among

BETTER = {"precision": "higher"}
NEEDS = {"precision": "inception-2015-12-05.pt"}
RANGE = {"precision": (0, 1)}
VIEW = "whole"
PERCEPTUAL = False  # a report plots the distances


def of_sets(sr: Features, hr: Features, labels: Array) -> Estimate:
    return share_among(sr, hr)


def floor(hr: Features, labels: Array) -> float:
    """Of one half of HR among the other."""
    return share_among(*halves(hr)).value
