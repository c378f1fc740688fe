"""Files: atomic writes, safe reads, appended lines, lists, checksums, locks, checks of paths, and the cache folder."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import platform
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

from sr_dist.core.errors import UserError, nearest_path

IMAGE_FORMATS = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF",
}  # fmt: skip
IMAGE_SUFFIXES = tuple(IMAGE_FORMATS)
SHORT_SUFFIXES = {".jpeg": ".jpg", ".tiff": ".tif"}  # other names of a format
SETTLED = 3.0  # seconds after which a file's times tell two versions of it apart
Version = tuple[int, int, int, int, int]
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # some clusters mount Lustre and NFS without locks


def write_whole(path: Path, data: bytes) -> None:
    """Writes a temporary file, syncs it and renames it. The file is complete or absent, never partial."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, tree: Mapping[str, Any]) -> None:
    """Writes an object in the form that people read, complete or not at all."""
    write_whole(path, (json.dumps(tree, indent=1) + "\n").encode())


def open_regular(path: Path) -> IO[bytes]:
    """Opens a file to read. A pipe or a device could block, or never end, and is refused as an OSError."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115 - the caller's
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return file


def read_regular(path: Path, most: int | None = None, kind: str = "a file of this kind") -> bytes:
    """The content of a regular file. One of more than `most` bytes is a ValueError."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise ValueError(f"it has {size} bytes; {kind} has at most {most}")
        return file.read() if most is None else file.read(size + 1)  # a file that grows meanwhile may pass the limit by 1 byte


class Lines:
    """A file to which whole lines are appended, each at once. A line that the disk refuses leaves no part of itself."""

    def __init__(self, path: Path) -> None:
        self._path, self._folder = path, _identity(path.parent)
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - open as long as the run

    def write(self, line: str) -> None:
        self._follow()
        rest = memoryview(f"{line}\n".encode(errors="backslashreplace"))
        end = os.fstat(self._file.fileno()).st_size
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            with suppress(OSError):
                os.truncate(self._file.fileno(), end)
            raise

    def _follow(self) -> None:
        """Opens the path again where another file is there now: editors and log rotation replace files. What lies in another
        folder of this name is not ours."""
        own = os.fstat(self._file.fileno())
        if _identity(self._path) != (own.st_dev, own.st_ino) and _identity(self._path.parent) == self._folder:
            new = open(self._path, "ab", buffering=0)  # noqa: SIM115
            self._file.close()
            self._file = new

    def close(self) -> None:
        self._file.close()


def _identity(path: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        stat = os.stat(path)
        return stat.st_dev, stat.st_ino
    return None


def version_of(path: Path) -> Version | None:
    """Equal as long as a file is the same. None for one that cannot be read, and for one that has changed just now: the clocks of
    file systems are coarse, so it may change again without a trace."""
    with suppress(OSError):
        facts = os.stat(path)
        if abs(time.time() - max(facts.st_mtime, facts.st_ctime)) > SETTLED:
            return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns
    return None


def files_below(folder: Path) -> Iterator[Path]:
    """Everything below a folder. `rglob` leaves out folders that may not be read, without a word; this raises the OSError."""

    def fail(problem: OSError) -> None:
        raise problem

    for place, folders, files in os.walk(folder, onerror=fail):
        yield from (Path(place, name) for name in (*folders, *files))


def images_below(folder: Path) -> list[Path]:
    """The image files below a folder, sorted. Hidden files and folders, such as macOS' `._a.png`, are left out."""
    files = sorted(p for p in files_below(folder) if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    return [p for p in files if not any(part.startswith(".") for part in p.relative_to(folder).parts)]


def sync(path: Path) -> None:
    """Flushes a file, or the list of names in a folder, to the disk."""
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


def this_process() -> str:
    return f"process {os.getpid()} on {platform.node()}"


def owner_of(lock: Path) -> str | None:
    """What `lock_file` wrote of the last process that had this lock."""
    with suppress(OSError):
        return lock.read_text(encoding="utf-8").strip()
    return None


class InUse(Exception):
    """Another process holds the lock. The message names it."""


def lock_file(path: Path) -> IO[str]:
    """Locks a file until it is closed or this process ends. Raises `InUse` where another process holds the lock."""
    lock = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - the caller holds it
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # flock would be inherited by worker processes
    except OSError as problem:
        if problem.errno in NO_LOCKS:
            print(f"note: '{path.parent}' is on a file system without locks: a second process is not refused", flush=True)
            return lock
        lock.seek(0)
        raise InUse(lock.read().strip() or "another process") from None
    lock.truncate(0)
    lock.write(this_process())
    lock.flush()
    return lock


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Holds a lock that is released when the process ends, in whatever way; other threads of the process do not get it either.

    False on a file system without locks. Raises a BlockingIOError where another has the lock and we do not wait.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with open(path, "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError as problem:
                if problem.errno not in NO_LOCKS:
                    raise
                _note_no_locks(path.parent)
                yield False
                return
            own = os.fstat(lock.fileno())
            if _identity(path) != (own.st_dev, own.st_ino):
                continue  # renamed or removed while we waited: the next process locks another file
            try:
                yield True
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)  # also for child processes that have inherited the file
            return


@cache
def _note_no_locks(folder: Path) -> None:
    print(f"note: '{folder}' is on a file system without locks: several processes may fetch the same file", flush=True)


def check_exists(path: str, key: str) -> None:
    """Refuses a path that does not exist and names the nearest one. `key` names the path in the error."""
    if not Path(path).exists():
        raise UserError(f"{key}: nothing is at '{path}'{nearest_path(path)}")


def same_place_twice(names: Sequence[str], words: Sequence[str] = ()) -> bool:
    """Whether two names are the same path, however they are written. `words` are not paths."""
    return len({name if name in words else str(Path(name).resolve()) for name in names}) < len(names)


def cache_folder() -> Path:
    """The user's folder for files that can be recomputed."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sr_dist"
