"""Mistakes of the user: one line that names the key, the value that was given, and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from sr_dist.core.passwords import without_passwords
from sr_dist.core.printable import printable

LONGEST_MESSAGE = 1600  # characters of the beginning of a message; of a longer one also the end
LONGEST_NAME = 200  # characters of a name that is compared with others; the time grows with the square


class UserError(ValueError):
    """A mistake in a command or a recipe. Commands print it as one line that starts with `error:` and exit with 2."""

    on_all_ranks = False
    """Whether all ranks have raised it, so that one of them is enough to print it."""

    def __init__(self, message: str = "") -> None:
        message = printable(without_passwords(message), keep="\n")
        if len(message) > LONGEST_MESSAGE * 5 // 4:  # a name from a file may have any length
            message = f"{message[:LONGEST_MESSAGE]} ... {message[-(LONGEST_MESSAGE // 4) :]}"
        super().__init__(message)


def nearest(name: str, allowed: Iterable[str], prefix: str = "") -> str:
    """The end of an error message: `; did you mean 'srugan'?`, or the names to choose from."""
    allowed = sorted({name for name in allowed if not Path(name).name.startswith(".")})  # no hidden files
    close = difflib.get_close_matches(name[:LONGEST_NAME], allowed, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{prefix}{close[0]}'?"
    return f"; choose from {', '.join(allowed)}" if allowed else ""


def nearest_path(path: str | Path, others: Iterable[str] = ()) -> str:
    """The same for a path that does not exist: what lies in its folder, and other words that are allowed."""
    parent = Path(path).parent
    return nearest(str(path), [*others, *(str(p) for p in parent.glob("*"))] if parent.is_dir() else others)


def first_line(problem: BaseException) -> str:
    """The first line of an exception's message, or its type if there is no message; without passwords."""
    return printable(without_passwords((str(problem).strip() or type(problem).__name__).splitlines()[0]))
