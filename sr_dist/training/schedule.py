"""The learning rate as a pure function of the step, so that there is nothing to save."""

from __future__ import annotations

import math

from sr_dist.recipe.sections import Schedule


def factor(schedule: Schedule, step: int) -> float:
    """What the learning rate is multiplied by in this step (steps count from 1)."""
    warm = min(step / schedule.warmup, 1.0) if schedule.warmup else 1.0
    if schedule.name == "milestones":
        return warm * schedule.factor ** sum(step > milestone for milestone in schedule.milestones)
    if schedule.name == "cosine":
        assert schedule.period
        return warm * (1 + math.cos(math.pi * min(step / schedule.period, 1.0))) / 2
    return warm
