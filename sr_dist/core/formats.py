"""Format versions of the JSON that is written to disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sr_dist.core.errors import UserError
from sr_dist.core.version import __version__

REMOVE = "remove the file or use another folder"
STAMP = ("format", "sr_dist")  # the keys that every file has


class UnknownFormat(UserError):
    """A file that another version has written."""


def stamp(version: int) -> dict[str, Any]:
    return {"format": version, "sr_dist": __version__}


def refuse_unknown(header: Mapping[str, Any], version: int, path: Path, key: str, advice: str = "use that version") -> None:
    """Refuses a file of another format. sr_dist 0.1.0 wrote format 1 without saying so."""
    stated = header.get("format", 1)
    if stated != version:
        raise UnknownFormat(
            f"{key}: '{path}' has format {stated!r}, written by sr_dist {header.get('sr_dist', 'of unknown version')}; "
            f"this is sr_dist {__version__}, which reads format {version}; {advice}"
        )
