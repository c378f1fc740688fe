"""Files that appear whole or not at all, and their fingerprints."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from sr_dist.core.errors import UserError, nearest

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # as some clusters mount Lustre and NFS


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file aside, syncs it, renames it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Makes sure that a file, or a folder's list of names, has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


class InUse(Exception):
    """Which process has claimed a file."""


def claimed(path: Path) -> IO[str]:
    """A file that no other process can claim until this one ends in whatever way, or closes it."""
    lock = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - held by whoever gets it
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # and not flock, which loading processes would inherit
    except OSError as problem:
        if problem.errno in NO_LOCKS:
            print(f"note: '{path.parent}' is on a file system without locks: no one keeps a second process from it", flush=True)
            return lock
        lock.seek(0)
        raise InUse(lock.read().strip() or "another process") from None
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {platform.node()}")
    lock.flush()
    return lock


def exists(path: str, key: str) -> None:
    """Refuses a path where nothing is, with the nearest name beside it. `key` names it in the error."""
    if not Path(path).exists():
        near = [str(p) for p in Path(path).parent.glob("*")] if Path(path).parent.is_dir() else []
        raise UserError(f"{key}: nothing is at '{path}'{nearest(path, near)}")


def same_place_twice(names: Sequence[str], words: Sequence[str] = ()) -> bool:
    """Whether two names lead to one place, however they are written; `words` are not places."""
    return len({name if name in words else str(Path(name).resolve()) for name in names}) < len(names)


def cache_folder() -> Path:
    """The user's folder for what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sr_dist"
