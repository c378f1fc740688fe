"""Fréchet Inception distance of patches of 299 pixels, as they are: squeezing whole images takes away what SR adds.

The same grid lies over SR and HR, in the middle of every image; images below 299 pixels have no patch.
"""

from __future__ import annotations

from sr_dist.eval.features import Estimate, Features, distances, halves, jackknifed
from sr_dist.eval.frechet import Array

BETTER = {"patch_fid": "lower"}
NEEDS = {"patch_fid": "inception-2015-12-05.pt"}
VIEW = "patches"


def of_sets(sr: Features, hr: Features, labels: Array) -> Estimate:
    return jackknifed(sr, hr)


def floor(hr: Features, labels: Array) -> float:
    return distances([halves(hr)])[0]
