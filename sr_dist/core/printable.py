"""Text for a terminal or a log: names and messages from data and servers may hold commands to the terminal, and false lines."""

from __future__ import annotations

import re

CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
SURROGATES = re.compile("[\ud800-\udfff]")


def printable(text: str, keep: str = "") -> str:
    r"""The text with its control characters written out (`\x1b`), except those to keep."""
    return CONTROLS.sub(lambda match: match[0] if match[0] in keep else repr(match[0])[1:-1], text)


def is_path(text: str) -> bool:
    """Whether a file can have this path, and a terminal can show it."""
    return not (CONTROLS.search(text) or SURROGATES.search(text))


def plural(number: int, noun: str, many: str = "") -> str:
    """`1 image`, `2 images`, `1,000 classes`."""
    return f"{number:,} {noun if number == 1 else many or noun + 's'}"
