"""Fréchet Inception distance of patches of 299 pixels, as they are: squeezing whole images takes away what SR adds.

The same grid lies over SR and HR, in the middle of every image; images below 299 pixels have no patch.
"""

from __future__ import annotations

from sr_dist.evaluation.metrics import fid

BETTER = {"patch_fid": "lower"}
NEEDS = {"patch_fid": "inception-2015-12-05.pt"}
VIEW = "patches"

of_sets, floor = fid.of_sets, fid.floor  # the same distance, of other features
