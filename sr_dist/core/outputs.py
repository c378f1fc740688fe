"""Writes what a user asked for. A full disk is the user's to mend, so it is one line and not a traceback."""

from __future__ import annotations

from pathlib import Path

from sr_dist.core.errors import UserError
from sr_dist.core.files import write_whole


def write_output(path: Path, content: bytes, key: str) -> None:
    """Writes a file, complete or not at all, and the folders above it. `key` names the option or word in the error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as problem:
        raise UserError(f"{key}: '{path}' cannot be written: {problem.strerror}") from None
