"""The learning rate, and what is due, as pure functions of the step: they have no state to save."""

from __future__ import annotations

import math

from sr_dist.recipe.sections import Recipe, Schedule


def due(recipe: Recipe, period: int | None, step: int) -> bool:
    """Every `period` steps, and always at the last one."""
    return step == recipe.steps or (period is not None and step % period == 0)


def learning_rate(recipe: Recipe, phase: str, step: int) -> float:
    """The learning rate of a network in a step. Steps count from 1."""
    return recipe.optimizer_of(phase).learning_rate * factor(recipe.schedule, step)


def factor(schedule: Schedule, step: int) -> float:
    """The multiplier of the learning rate in a step."""
    warm = min(step / schedule.warmup, 1.0) if schedule.warmup else 1.0
    if schedule.name == "milestones":
        return warm * schedule.factor ** sum(step > milestone for milestone in schedule.milestones)
    if schedule.name == "cosine":
        assert schedule.period
        place = (step - 1) % schedule.period + 1 if schedule.restart else min(step, schedule.period)
        return warm * (schedule.lowest + (1 - schedule.lowest) * (1 + math.cos(math.pi * (place / schedule.period))) / 2)
    return warm
