"""The sections of a recipe that watch and steer a run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from sr_dist.core.config import Absent, Fraction, NonNegative, Positive, Settings
from sr_dist.recipe.weights import Points, Weight

Above = Annotated[float, Field(gt=0)]


class Alarms(Settings):
    """The bounds of alarms."""

    saturation: Fraction = 0.9
    """The share of logits whose loss has no gradient left, on real and on restored images: the discriminator has won."""
    ratio: Above = 10.0
    """The gradient of adversarial terms over that of the others, at sr."""
    mean: Above = 0.05
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
    on_collapse: Literal["warn", "stop", "rollback"] = "warn"
    """How a discriminator that has won, colours that drift and a lost contrast are handled: go on, stop, or go back to the best
    checkpoint from before (without a best one to the newest) with lower rates; so for rollback also max_skipped."""
    rollbacks: Positive = 3
    """The most rollbacks of a run; then it stops."""
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """What a rollback multiplies the rates of all networks with."""
    alarms: Alarms = Alarms()

    @model_validator(mode="after")
    def _agree(self) -> Health:
        if self.on_collapse != "warn" and not self.enabled:
            raise ValueError(f"on_collapse: {self.on_collapse} needs what health measures; say --health.enabled=true")
        return self


class DiscriminatorTraining(Settings):
    """When the discriminator of a GAN is trained, and what it sees."""

    warmup: NonNegative = 0
    """Steps at the beginning in which only the discriminator is trained."""
    updates: Positive = 1
    """The generator is trained in every N-th step after them, the discriminator in each."""
    adaptive: Annotated[Annotated[float, Field(gt=0, lt=1)] | None, Absent] = None
    """The discriminator pauses after a step in which the mean gradient of its loss by its logits (of cross-entropy: the mean
    probability of a wrong answer) was below this, such as 0.05."""
    noise: Weight = 0.0
    """The deviation of noise on the images that it sees, in [0, 1]: a number, or numbers by step."""

    @field_validator("noise")
    @classmethod
    def _not_negative(cls, value: float | Points) -> float | Points:
        for deviation in value.values() if isinstance(value, dict) else (value,):
            if deviation < 0:
                raise ValueError(f"the deviation {deviation:g} is below 0")
        return value

    def trains_generator(self, step: int) -> bool:
        return step > self.warmup and (step - self.warmup) % self.updates == 0
