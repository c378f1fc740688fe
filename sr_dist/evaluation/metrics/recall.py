"""Recall of restored images: the share of HR whose features lie among those of SR. Low where SR lacks what photographs show."""

from __future__ import annotations

from sr_dist.evaluation.distances.features import Estimate, Features
from sr_dist.evaluation.distances.frechet import Array
from sr_dist.evaluation.metrics import precision

BETTER = {"recall": "higher"}
NEEDS = {"recall": "inception-2015-12-05.pt"}
RANGE = {"recall": (0, 1)}
VIEW = "whole"
PERCEPTUAL = False  # a report plots the distances


def of_sets(sr: Features, hr: Features, labels: Array) -> Estimate:
    """The precision of HR, if SR were the photographs."""
    return precision.of_sets(hr, sr, labels)


floor = precision.floor
