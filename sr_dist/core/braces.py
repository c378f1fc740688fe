"""Patterns of names: `data/train-{000000..000127}.tar`."""

from __future__ import annotations

import os
import re
from itertools import islice

from sr_dist.core.errors import UserError

MOST_NAMES = 1_000_000


def expanded(pattern: str, key: str) -> list[str]:
    """The names that a brace pattern stands for. `key` names it in errors."""
    from braceexpand import braceexpand  # not needed for folders

    if "*" in pattern and ":" not in pattern and not os.path.exists(pattern):
        raise UserError(f"{key}: '{pattern}': a * stands for nothing; patterns are such as 'name-{{000000..000127}}.tar'")
    ranges = re.findall(r"\{(-?\d+)\.\.(-?\d+)", pattern)  # braceexpand makes a list of each
    too_many = any(abs(int(last[-20:]) - int(first[-20:])) >= MOST_NAMES for first, last in ranges)
    try:
        names = [] if too_many else list(islice(braceexpand(pattern), MOST_NAMES + 1))
    except (ValueError, RecursionError):
        raise UserError(f"{key}: the braces of '{pattern}' do not close") from None
    if too_many or len(names) > MOST_NAMES:
        raise UserError(f"{key}: '{pattern}' stands for more than {MOST_NAMES} names")
    return names
