"""Mistakes of the user: one line that names the key, the value that was given, and what is allowed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sr_dist.core.passwords import without_passwords
from sr_dist.core.printable import printable

LONGEST_MESSAGE = 1600  # characters of the beginning of a message; of a longer one also the end
LONGEST_NAME = 200  # characters of a name that is compared with others; the time grows with the square
NEAR_PATH = 0.6  # of 1; short names that have little in common reach 0.57


class UserError(ValueError):
    """A mistake in a command or a recipe. Commands print it as one line that starts with `error:` and exit with 2."""

    on_all_ranks = False
    """Whether all ranks have raised it, so that one of them is enough to print it."""

    def __init__(self, message: str = "") -> None:
        message = printable(without_passwords(message), keep="\n")
        if len(message) > LONGEST_MESSAGE * 5 // 4:  # a name from a file may have any length
            message = f"{message[:LONGEST_MESSAGE]} ... {message[-(LONGEST_MESSAGE // 4) :]}"
        super().__init__(message)


class RunEnded(RuntimeError):
    """A run has ended itself, on all ranks alike, such as after a collapse, and has said so. Commands exit with 1."""


@contextmanager
def renamed_key(key: str, to: str) -> Iterator[None]:
    """A mistake under the key of one command is told under that of another, which shares its code."""
    try:
        yield
    except UserError as mistake:
        if not str(mistake).startswith(f"{key}: "):
            raise
        raise UserError(f"{to}{str(mistake).removeprefix(key)}") from None


@contextmanager
def in_python(section: str = "", renamed: tuple[str, str] = ("", "")) -> Iterator[None]:
    """A mistake in a call from Python is told by the names of its arguments: `--name`, or `section.name`, is `name`.
    `renamed`: a word of the command, and the argument that has its place."""
    options = r"--" if not section else rf"(?:--)?{section}\."
    try:
        yield
    except UserError as mistake:
        text = re.sub(rf"(?<![\w/.-]){options}(?=[a-z_]+(?![\w/.]))", "", str(mistake))
        word, argument = renamed
        problem = UserError(argument + text.removeprefix(word) if word and text.startswith(f"{word}:") else text)
        problem.on_all_ranks = mistake.on_all_ranks
        raise problem from None


def with_article(name: str) -> str:
    """`an int`, `a str`: the name of a type in a sentence."""
    return f"{'an' if name[:1].lower() in 'aeio' or name.startswith('nd') else 'a'} {name}"


def nearest(name: str, allowed: Iterable[str], prefix: str = "") -> str:
    """The end of an error message: `; did you mean 'srugan'?`, or the names to choose from."""
    allowed = sorted({name for name in allowed if not Path(name).name.startswith(".")})  # no hidden files
    close = difflib.get_close_matches(name[:LONGEST_NAME], allowed, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{prefix}{close[0]}'?"
    return f"; choose from {', '.join(allowed)}" if allowed else ""


def nearest_path(path: str | Path, others: Iterable[str] = (), among: Iterable[Path] | None = None) -> str:
    """The same for a path that does not exist: a path whose last name is close, `among` those of its folder if none are given,
    or one of the other words that are allowed. Folders in common make no paths close, and there is no list to choose from."""
    path = Path(path)
    by_name = {p.name: p for p in (path.parent.glob("*") if among is None else among) if not p.name.startswith(".")}
    close = difflib.get_close_matches(path.name[:LONGEST_NAME], sorted(by_name), n=1, cutoff=NEAR_PATH)
    return f"; did you mean '{by_name[close[0]]}'?" if close else nearest(str(path), others)


def first_line(problem: BaseException) -> str:
    """The first line of an exception's message, or its type if there is no message; without passwords."""
    return printable(without_passwords((str(problem).strip() or type(problem).__name__).splitlines()[0]))
