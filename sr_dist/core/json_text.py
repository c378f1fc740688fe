"""Parses JSON that others may have written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sr_dist.core.files import read_regular


def parse_json(text: str | bytes) -> Any:
    """The value. Raises a ValueError for everything that cannot be parsed, also where the parser's recursion ends."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path) -> Any:
    """The value in a file. Raises an OSError or a ValueError."""
    return parse_json(read_regular(path))
