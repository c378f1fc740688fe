"""The sections of a recipe that watch and steer a run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sr_dist.core.config import Fraction, Positive, Settings

Above = Annotated[float, Field(gt=0)]


class Alarms(Settings):
    """The bounds of alarms."""

    saturation: Fraction = 0.9
    """The share of logits whose loss has no gradient left, on real and on restored images: the discriminator has won."""
    ratio: Above = 10.0
    """The gradient of adversarial terms over that of the others, at sr."""
    mean: Above = 0.1
    """The difference between the means of SR and HR in a channel, of images in [0, 1]."""
    spread: Annotated[float, Field(gt=1)] = 2.0
    """The factor between the standard deviations of SR and HR in a channel."""
    rows: Positive = 2
    """The rows of the log in a row that must be above a bound."""
    repeat: Positive = 20
    """The rows after which an alarm that lasts is repeated."""


class Health(Settings):
    """What a run measures of its own state in logged steps, and its alarms."""

    enabled: bool = True
    """Measure the columns health/..., and give alarms."""
    alarms: Alarms = Alarms()
