"""Files of checkpoints are opened only if they are as they were saved: size and sha256 are those of the manifest beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from sr_dist.core.errors import UserError, first_line
from sr_dist.core.files import sha256
from sr_dist.core.formats import UnknownFormat, refuse_unknown
from sr_dist.core.json_text import read_json
from sr_dist.core.run_layout import (
    CHECKPOINT_FORMAT,
    MANIFEST,
    STATE,
    checkpoint_folder,
    checkpoint_of,
    checkpoint_steps,
)
from sr_dist.core.version import __version__


@lru_cache(maxsize=256)
def _digest(file: Path, facts: tuple[int, ...]) -> str:
    return sha256(file)


def digest(file: Path) -> str:
    """The sha256 of a file. A process reads a file once for it, unless the file changes: reports write it again."""
    facts = file.stat()
    return _digest(file, (facts.st_ino, facts.st_size, facts.st_mtime_ns))


def check(file: Path, key: str) -> None:
    """Refuses a file of a checkpoint that is not as it was saved. Files elsewhere have nothing to be compared with."""
    actual = file.resolve()  # of a symbolic link to a checkpoint's file
    try:
        problem = _problem(actual, key)
    except OSError as error:
        raise UserError(f"{key}: '{file}' cannot be read: {error.strerror}") from None
    if problem:
        raise UserError(f"{key}: '{file}' is damaged: {problem}; copy it again from its source{_earlier(actual)}")


def _problem(file: Path, key: str) -> str | None:
    is_checkpoint = file.with_name(STATE).exists()
    if not file.is_file() or not file.with_name(MANIFEST).is_file():
        return None
    try:
        entry = read_manifest(file.parent, key)["files"].get(file.name)
        problem = entry and difference(file, entry, digest)
    except UnknownFormat:
        if is_checkpoint:
            raise
        return None  # a manifest of something else
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return f"'{MANIFEST}' beside it cannot be read ({first_line(error)})" if is_checkpoint else None
    if entry is None:
        return f"'{MANIFEST}' beside it does not list it" if is_checkpoint else None
    return f"it {problem}" if problem else None


def read_manifest(checkpoint: Path, key: str) -> dict[str, Any]:
    """manifest.json of a checkpoint. Another format is refused; a manifest that is damaged raises one of several errors."""
    manifest = read_json(checkpoint / MANIFEST)
    if manifest.get("sr_dist") != __version__:  # another number of this version is a flipped bit
        refuse_unknown(manifest, CHECKPOINT_FORMAT, checkpoint / MANIFEST, key)
    return manifest


def difference(file: Path, entry: Mapping[str, Any], digest_of: Callable[[Path], str]) -> str | None:
    """How a file differs from its entry in the manifest, or None."""
    size = file.stat().st_size
    if size != entry["bytes"]:
        return f"has {size} bytes, not {entry['bytes']}"
    return None if digest_of(file) == entry["sha256"] else f"does not match its sha256 in {MANIFEST}"


def _earlier(file: Path) -> str:
    """The newest of the earlier checkpoints of the run that have such a file, as advice."""
    if not (place := checkpoint_of(file)):
        return ""
    run, own = place
    files = [checkpoint_folder(run, step) / file.name for step in checkpoint_steps(run) if step < own]
    existing = [earlier for earlier in files if earlier.is_file()]
    return f", or name an earlier one, such as '{existing[-1]}'" if existing else ""
