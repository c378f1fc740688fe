"""Alarms: what a row of the log says of the run's health, in a sentence with the key to try.

The state is in checkpoints, so a run that continues gives the same alarms at the same steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypedDict

from sr_dist.recipe.steering import Alarms

Row = Mapping[str, float]


class AlarmState(TypedDict):
    """In state.json."""

    streaks: dict[str, int]  # alarm -> rows in a row that were above its bound
    since: dict[str, int]  # alarm -> the step of the first of them
    armed: list[str]  # alarms of what is bad only after it was good: a network without training has any colours


class Alarm(NamedTuple):
    name: str
    text: str
    since: int  # the step of the first row above the bound


COLLAPSES = ("collapse", "mean", "spread")  # after which a run is of no use


def no_alarms() -> AlarmState:
    return AlarmState(streaks={}, since={}, armed=[])


def collapse(row: Row, bounds: Alarms) -> str | None:
    shares = [row.get(f"health/saturated_{kind}") for kind in ("real", "fake")]
    known = [share for share in shares if share is not None and share >= bounds.saturation]
    if len(known) < 2:
        return None
    return (
        f"the discriminator has won: {min(known):.0%} of its answers leave it nothing to learn, and the generator follows noise; "
        f"try a lower discriminator_optimizer.learning_rate, or begin with a pixel stage (init.generator)"
    )


def ratio(row: Row, bounds: Alarms) -> str | None:
    value = row.get("health/adversarial_ratio", 0.0)
    if not value > bounds.ratio:
        return None
    return (
        f"the gradient of the adversarial terms is {value:.3g} times that of the others, which then have no say; try a lower "
        f"objective.adversarial_weight"
    )


def mean(row: Row, bounds: Alarms) -> str | None:
    shifts = {key: value for key, value in row.items() if key.startswith("health/mean_")}
    worst = max(shifts, key=lambda key: abs(shifts[key]), default=None)
    if worst is None or not abs(shifts[worst]) > bounds.mean:
        return None
    return (
        f"colours drift: channel {worst[-1]} of SR is {shifts[worst]:+.3f} off that of HR on average; try a lower "
        f"optimizer.learning_rate, or a larger weight of l1 in objective.content"
    )


def spread(row: Row, bounds: Alarms) -> str | None:
    ratios = {key: value for key, value in row.items() if key.startswith("health/spread_")}
    worst = max(ratios, key=lambda key: max(ratios[key], 1 / max(ratios[key], 1e-9)), default=None)
    if worst is None or 1 / bounds.spread < ratios[worst] < bounds.spread:
        return None
    return (
        f"contrast is lost or exaggerated: in channel {worst[-1]} SR varies {ratios[worst]:.3g} times as much as HR; try a lower "
        f"optimizer.learning_rate, or a larger weight of l1 in objective.content"
    )


CHECKS: dict[str, Callable[[Row, Alarms], str | None]] = {"collapse": collapse, "ratio": ratio, "mean": mean, "spread": spread}
AFTER_GOOD = ("mean", "spread")


def check(row: Row, bounds: Alarms, state: AlarmState) -> list[Alarm]:
    """The alarms that are due with this row. Changes `state`."""
    due = []
    for name, text_of in CHECKS.items():
        text = text_of(row, bounds)
        if text is None or (name in AFTER_GOOD and name not in state["armed"]):
            state["streaks"].pop(name, None)
            state["since"].pop(name, None)
            if text is None and name in AFTER_GOOD and name not in state["armed"]:
                state["armed"].append(name)
            continue
        since = state["since"].setdefault(name, int(row.get("step", 0)))
        rows = state["streaks"][name] = state["streaks"].get(name, 0) + 1
        if rows >= bounds.rows and (rows - bounds.rows) % bounds.repeat == 0:
            due.append(Alarm(name, text, since))
    return due
