"""Writes what a user asked for. A full disk is the user's to mend, so it is one line and not a traceback."""

from __future__ import annotations

from pathlib import Path

from sr_dist.core.errors import UserError
from sr_dist.core.files import write_whole
from sr_dist.core.run_layout import MANIFEST, STATE


def write_output(path: Path, content: bytes, key: str) -> None:
    """Writes a file, complete or not at all, and the folders above it. `key` names the option or word in the error."""
    check_place(path, key)
    make_folder(path.parent, key)
    try:
        write_whole(path, content)
    except OSError as problem:
        raise UserError(f"{key}: '{path}' cannot be written: {problem.strerror}") from None


def check_place(path: Path, key: str) -> None:
    """Refuses files of a checkpoint."""
    if (path.parent / STATE).is_file() and (path.parent / MANIFEST).is_file():
        raise UserError(f"{key}: '{path}' would change a checkpoint; name a file in another folder")


def make_folder(folder: Path, key: str) -> None:
    """Makes a folder and those above it, if they do not exist."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UserError(f"{key}: '{folder}' cannot be created: {problem.strerror}") from None


def is_folder(out: str) -> bool:
    """Whether an output of this name is a folder: it is one, or ends with a slash, or has no suffix."""
    return Path(out).is_dir() or out.endswith("/") or not Path(out).suffix
