"""Files of checkpoints are opened only if they are as they were saved: size and sha256 are those of the manifest beside them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from sr_dist.core.errors import UserError, first_line
from sr_dist.core.files import sha256
from sr_dist.core.formats import refuse_unknown
from sr_dist.core.json_text import read_json
from sr_dist.core.run_layout import CHECKPOINT_FORMAT, MANIFEST, STATE, checkpoint_folder, checkpoint_of, checkpoint_steps
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
    path, is_checkpoint = file.with_name(MANIFEST), file.with_name(STATE).exists()
    if not file.is_file() or not path.is_file():
        return None
    try:
        entry = _entry(read_json(path), file, key)
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        return f"'{MANIFEST}' beside it cannot be read ({first_line(problem)})" if is_checkpoint else None
    if entry is None:
        return f"'{MANIFEST}' beside it does not list it" if is_checkpoint else None
    size = file.stat().st_size
    if size != entry["bytes"]:
        return f"it has {size} bytes, not {entry['bytes']}"
    return None if digest(file) == entry["sha256"] else f"its sha256 is not that of its checkpoint's {MANIFEST}"


def _entry(manifest: dict[str, Any], file: Path, key: str) -> dict[str, Any] | None:
    """Size and sha256 of the file."""
    files = manifest["files"]
    if manifest.get("sr_dist") != __version__:  # another number of this version is a flipped bit
        refuse_unknown(manifest, CHECKPOINT_FORMAT, file.with_name(MANIFEST), key)
    entry = files.get(file.name)
    return None if entry is None else {"bytes": entry["bytes"], "sha256": entry["sha256"]}


def _earlier(file: Path) -> str:
    """The newest of the earlier checkpoints of the run that have such a file, as advice."""
    if not (place := checkpoint_of(file)):
        return ""
    run, own = place
    files = [checkpoint_folder(run, step) / file.name for step in checkpoint_steps(run) if step < own]
    existing = [earlier for earlier in files if earlier.is_file()]
    return f", or name an earlier one, such as '{existing[-1]}'" if existing else ""
