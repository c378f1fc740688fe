"""Names that an evaluation knows: its baselines, and its protocols with their numbers. No torch."""

from __future__ import annotations

from typing import NamedTuple

BASELINES = ("nearest", "bilinear", "bicubic")


class Preset(NamedTuple):
    border: int  # times the scale, in pixels
    eight_bit: bool  # restored images are rounded as a file would store them
    rounded_luma: bool  # MATLAB's rgb2ycbcr rounds on 8-bit images, BasicSR's does not


PROTOCOLS = {
    "matlab-y": Preset(1, True, True),
    "basicsr": Preset(1, True, False),
    "rgb-float": Preset(0, False, False),
}
