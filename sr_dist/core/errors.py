"""Mistakes of the user: one line that names the key, the value that was given, and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in a command or a recipe. Commands print it as one line that starts with `error:` and exit with 2."""


def nearest(name: str, allowed: Iterable[str], prefix: str = "") -> str:
    """The end of an error message: `; did you mean 'srugan'?`, or the names to choose from."""
    allowed = sorted(set(allowed))
    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{prefix}{close[0]}'?"
    return f"; choose from {', '.join(allowed)}" if allowed else ""


def first_line(problem: BaseException) -> str:
    """The first line of an exception's message, or its type if there is no message."""
    return (str(problem).strip() or type(problem).__name__).splitlines()[0]
