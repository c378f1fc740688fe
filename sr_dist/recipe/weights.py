"""The weight of a loss: a number, or numbers at steps, `{0: 1.0, 10000: 0.1}`, with straight lines between them and the first and
last before and after. A pure function of the step, so a resumed run continues it exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

Points = dict[int, float]  # by step, in ascending order


def parse_weight(value: Any) -> float | Points:
    if not isinstance(value, Mapping):
        return _number(value)
    if not value:
        raise ValueError("a weight by step needs at least one step, such as {0: 1.0, 10000: 0.1}")
    points = {_step(step): _number(weight) for step, weight in value.items()}
    if len(points) < len(value):
        raise ValueError(f"one of the steps {', '.join(map(str, value))} occurs twice")
    return dict(sorted(points.items()))


def is_schedule(value: Any) -> bool:
    """A section is one if all its keys are numbers; other sections are options."""
    return isinstance(value, Mapping) and bool(value) and all(str(key).strip().lstrip("-").isdigit() for key in value)


def weight_at(weight: float | Points, step: int) -> float:
    """The weight in a step. Steps count from 1."""
    if not isinstance(weight, dict):
        return weight
    steps = list(weight)
    after = next((i for i, point in enumerate(steps) if point >= step), None)
    if after is None:
        return weight[steps[-1]]
    if after == 0 or steps[after] == step:
        return weight[steps[after]]
    low, high = steps[after - 1], steps[after]
    return weight[low] + (weight[high] - weight[low]) * (step - low) / (high - low)


def is_never_trained(weight: float | Points) -> bool:
    """The weight is 0 in every step."""
    return not any(weight.values()) if isinstance(weight, dict) else weight == 0


def _number(text: Any) -> float:
    try:
        weight = float(text)
    except (TypeError, ValueError):
        raise ValueError(f"{text!r} is not a weight (a number)") from None
    if not math.isfinite(weight):
        raise ValueError(f"the weight {text} is not a finite number")
    return weight


def _step(text: Any) -> int:
    if not str(text).strip().isdigit():
        raise ValueError(f"{text!r} is not a step; a weight by step is written {{0: 1.0, 10000: 0.1}}")
    return int(text)


Weight = Annotated[float | Points, BeforeValidator(parse_weight)]
