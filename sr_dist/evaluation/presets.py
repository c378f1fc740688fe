"""The names of the baselines and of the protocols, and the prefix of another package's metrics. Does not import torch."""

from __future__ import annotations

from typing import NamedTuple

BASELINES = ("nearest", "bilinear", "bicubic")
PYIQA = "pyiqa:"  # before the name of a metric of the package pyiqa


class Preset(NamedTuple):
    border: int
    """Pixels, as a multiple of the scale."""
    eight_bit: bool
    """Images are rounded to 8 bits, as a file stores them."""
    rounded_luma: bool
    """MATLAB's rgb2ycbcr rounds Y of 8-bit images; BasicSR does not."""


PROTOCOLS = {
    "matlab-y": Preset(1, True, True),
    "basicsr": Preset(1, True, False),
    "rgb-float": Preset(0, False, False),
}
