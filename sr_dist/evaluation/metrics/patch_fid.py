"""Fréchet Inception distance of patches of 299 pixels, not resized: resizing whole images removes the detail that SR adds.

The same grid lies in the middle of SR and HR. Images below 299 pixels have no patch.
"""

from __future__ import annotations

from sr_dist.evaluation.metrics import fid

BETTER = {"patch_fid": "lower"}
NEEDS = {"patch_fid": "inception-2015-12-05.pt"}
DIGITS = {"patch_fid": 2}
RANGE = {"patch_fid": (0, None)}
VIEW = "patches"

of_sets, floor = fid.of_sets, fid.floor  # the same distance, of other features
