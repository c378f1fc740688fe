"""What every command does before its work: answers `--help`, splits its words, and turns a user's mistake into exit code 2.

Fire splits the words and nothing more: it would run the function before it reports an unknown flag, and guess types
(`2024_01` becomes 202401). Types are `config.py`'s business.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import fire
from fire.decorators import SetParseFn

from sr_dist.core.errors import UserError, nearest

Words = list[str]
Options = dict[str, str]


def split(words: Sequence[str]) -> tuple[Words, Options]:
    """`RECIPE --data.batch=8 --dry_run` -> (["RECIPE"], {"data.batch": "8", "dry_run": "True"}); everything stays text."""
    for word in words:
        if word.startswith("-") and not re.match(r"--[^=-]", word):
            raise UserError(f"'{word}': options have two dashes: --key=value")
    found: tuple[Words, Options] = ([], {})

    @SetParseFn(str)
    def collect(*positional: str, **options: str) -> None:
        found[0].extend(positional)
        found[1].update(options)

    fire.Fire(collect, command=[_as_option(word) for word in words])
    return found


def _as_option(word: str) -> str:
    """A bare `--flag` means true; said with `=`, so that it cannot swallow the word after it."""
    return f"{word}=true" if word.startswith("--") and "=" not in word else word


def run(main: Callable[[Words, Options], None], words: Sequence[str] | None = None) -> int:
    """Runs one door and returns the exit code. The door's module docstring is its help."""
    words = sys.argv[1:] if words is None else list(words)
    if {"-h", "--help"} & set(words):
        print(inspect.cleandoc(sys.modules[main.__module__].__doc__ or ""))
        return 0
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a user's own parts are looked for where the command was given
    try:
        main(*split(words))
    except UserError as mistake:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {mistake}".replace("\n", " "), file=sys.stderr, flush=True)
        return 2
    return 0


def only(words: Words, *names: str) -> Words:
    """Checks the number of words that are not options: `only(words, "RECIPE")`."""
    if len(words) < len(names):
        raise UserError(f"{names[len(words)]} is missing; --help shows how to call this")
    if len(words) > len(names):
        raise UserError(f"'{words[len(names)]}' is one word too many (options are written --key=value); see --help")
    return words


def flag(options: Options, name: str) -> bool:
    """Takes a yes-or-no option out of the options."""
    text = options.pop(name, "false").lower()
    if text not in ("true", "false", "yes", "no", "1", "0"):
        raise UserError(f"{name}: '{text}' is neither true nor false")
    return text in ("true", "yes", "1")


def count(options: Options, name: str, default: int) -> int:
    """Takes a number from 1 up out of the options."""
    text = options.pop(name, str(default))
    if not re.fullmatch(r"0*[1-9][0-9]*", text):
        raise UserError(f"{name}: '{text}' is not a whole number from 1 up")
    return int(text)


def none_left(options: Options, *known: str) -> None:
    """Refuses what no one has taken out of the options."""
    for name in options:
        raise UserError(f"{name}: unknown option{nearest(name, known)}")
