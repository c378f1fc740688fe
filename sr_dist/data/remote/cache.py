"""A node's folder of fetched shards. Each shard is fetched once, by one process, and stays while there is room.

    tars/SHA256.tar      complete and checked; its modification time is the time of its last use
    tars/SHA256.part     being fetched; renamed after its size and sha256 were checked
    locks/               held by living processes only
    .sr_dist-cache       the marker; only files with names as above are ever removed

An open file survives its removal, so a shard can be removed while others read it. No torch here.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sr_dist.core.errors import first_line
from sr_dist.core.files import NO_LOCKS
from sr_dist.data.format import ShardEntry
from sr_dist.data.remote.cache_folder import LOCKS, SHARD, TARS, claim
from sr_dist.data.remote.download import SHARD_TRIES, FetchError, download, retry

ABANDONED = 3600.0  # seconds after which a partial file is a dead process's, where locks cannot say so


@dataclass(frozen=True)
class Cache:
    """`fetch_log` arguments are files to which every try to fetch is appended."""

    folder: Path
    limit: int  # bytes of shards

    def open(self, entry: ShardEntry, url: str, fetch_log: Path | None = None) -> int:
        """A file descriptor of the shard, which is fetched if it is not cached."""
        while True:
            self.fetch(entry, url, fetch_log)
            with suppress(FileNotFoundError):  # another process has just removed it to make room
                return os.open(self._path(entry), os.O_RDONLY)

    def fetch(self, entry: ShardEntry, url: str, fetch_log: Path | None = None) -> None:
        """Fetches the shard if it is not cached. If several processes need it, one fetches and the others wait."""
        if self._touch(entry):
            return
        with locked(self.folder / LOCKS / entry.sha256) as alone:
            if not self._touch(entry):
                name = f"the shard '{url}'"
                part = self._path(entry).with_name(f"{entry.sha256}{'' if alone else f'-{secrets.token_hex(4)}'}.part")
                retry(lambda: self._fetch(entry, url, part, fetch_log), name, SHARD_TRIES)

    def forget(self, entry: ShardEntry) -> None:
        """Removes a shard whose bytes have changed since it was checked."""
        self._path(entry).unlink(missing_ok=True)

    def _path(self, entry: ShardEntry) -> Path:
        return self.folder / TARS / f"{entry.sha256}.tar"

    def _touch(self, entry: ShardEntry) -> bool:
        """True if the shard is cached; its time of last use becomes now. A crash of the machine can leave a wrong size."""
        path = self._path(entry)
        with suppress(FileNotFoundError):
            if path.stat().st_size == entry.bytes:
                os.utime(path)
                return True
            path.unlink()
        return False

    def _fetch(self, entry: ShardEntry, url: str, part: Path, fetch_log: Path | None) -> None:
        problem: str | None = None
        received: list[int] = []
        try:
            self._make_room(part, entry.bytes)
            download(url, part, entry, received.append)
            os.replace(part, self._path(entry))
        except (FetchError, OSError) as error:
            problem = first_line(error)
            part.unlink(missing_ok=True)
            raise
        finally:
            if fetch_log is not None:
                _append(fetch_log, {"shard": entry.name, "bytes": sum(received), "problem": problem})

    def _make_room(self, part: Path, size: int) -> None:
        """Reserves the room for a shard. Removes the least recently used files until it fits, but none with other names."""
        part.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / LOCKS / "room"):
            own = [path for path in part.parent.iterdir() if SHARD.fullmatch(path.name)]
            stats = [(stat, path) for path in own if (stat := _stat(path)) is not None]
            files = sorted((stat.st_mtime_ns, stat.st_size, path) for stat, path in stats)
            used = sum(size for _, size, path in files if path != part)
            for _, freed, path in files:
                if used + size > self.limit and path != part and self._is_unused(path):
                    path.unlink(missing_ok=True)
                    used -= freed
            with open(part, "wb") as file:
                file.truncate(size)  # other processes count it from now on

    def _is_unused(self, path: Path) -> bool:
        """True if no process is fetching it: for complete shards, and for the partial file of a dead process."""
        if path.suffix != ".part":
            return True
        with open(self.folder / LOCKS / path.name[:64], "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as problem:
                stat = _stat(path) if problem.errno in NO_LOCKS else None
                return stat is not None and time.time() - stat.st_mtime > ABANDONED
        return True


def cache_of(folder: str | None, gigabytes: float) -> Cache:
    """The cache that a recipe names, or one in this machine's folder for temporary files."""
    path = Path(folder) if folder else Path(tempfile.gettempdir()) / f"sr_dist-cache-{os.getuid()}"
    claim(path)
    return Cache(path, int(gigabytes * 1e9))


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Holds a lock that is released when the process ends, in whatever way. False on a file system without locks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as problem:
            if problem.errno not in NO_LOCKS:
                raise
            _note_no_locks(path.parent.parent)
            yield False
            return
        try:
            yield True
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # also for child processes that have inherited the file


@cache
def _note_no_locks(folder: Path) -> None:
    print(f"note: '{folder}' is on a file system without locks: several processes may fetch the same shard", flush=True)


def _stat(path: Path) -> os.stat_result | None:
    with suppress(FileNotFoundError):
        return path.stat()
    return None


def _append(fetch_log: Path, row: dict[str, Any]) -> None:
    """Appends one line with one write, because several processes share the file. A full disk does not stop the fetch."""
    with suppress(OSError):
        fetch_log.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(fetch_log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, (json.dumps(row) + "\n").encode())
        finally:
            os.close(file)
