"""The user's mistakes: one line that names the key, says what came, what is allowed and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake at the door. Doors print it as one line starting `error:` and exit with 2."""


def nearest(name: str, allowed: Iterable[str], prefix: str = "") -> str:
    """The end of an error message: `; did you mean 'srugan'?`, or what there is to choose from."""
    allowed = sorted(set(allowed))
    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{prefix}{close[0]}'?"
    return f"; there are: {', '.join(allowed)}" if allowed else ""


def first_line(problem: BaseException) -> str:
    """What an exception says, in one line; its kind where it says nothing."""
    return (str(problem).strip() or type(problem).__name__).splitlines()[0]
