"""A node's folder of fetched shards. Each shard is fetched once, by one process, and stays while there is room.

    tars/SHA256.tar      complete and checked; its modification time is the time of its last use
    tars/SHA256.part     being fetched; renamed after its size and sha256 were checked
    indexes/SHA256/      manifest and indexes of a data set; its modification time is that of their last use
    locks/               held by living processes only
    .sr_dist-cache       the marker; only files with names as above are ever removed

An open file survives its removal, so a shard can be removed while others read it. No torch here.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sr_dist.core.errors import first_line
from sr_dist.core.files import locked
from sr_dist.data.format import ShardEntry
from sr_dist.data.remote.cache_folder import INDEXES, LOCKS, NAMES, TARS, claim
from sr_dist.data.remote.download import SHARD_TRIES, FetchError, download, retry

ABANDONED = 3600.0  # seconds after which a partial file is a dead process's, where locks cannot say so


@dataclass(frozen=True)
class Cache:
    """`fetch_log` arguments are files to which every try to fetch is appended."""

    folder: Path
    limit: int  # bytes of shards and indexes

    def claim(self) -> None:
        """Makes the folder this user's cache, or raises a UserError. Whoever fetches something calls this first."""
        claim(self.folder)

    def open(self, entry: ShardEntry, url: str, fetch_log: Path | None = None) -> int:
        """A file descriptor of the shard, which is fetched if it is not cached."""
        while True:
            self.fetch(entry, url, fetch_log)
            with suppress(FileNotFoundError):  # another process has just removed it to make room
                return os.open(self._path(entry), os.O_RDONLY)

    def fetch(self, entry: ShardEntry, url: str, fetch_log: Path | None = None) -> int:
        """Fetches the shard if it is not cached: its bytes, or 0. If several processes need it, one fetches and others wait."""
        if self._touch(entry):
            return 0
        with locked(self.folder / LOCKS / entry.sha256) as alone:
            if not self._touch(entry):
                name = f"the shard '{url}'"
                part = self._path(entry).with_name(f"{entry.sha256}{'' if alone else f'-{secrets.token_hex(4)}'}.part")
                retry(lambda: self._fetch(entry, url, part, fetch_log), name, SHARD_TRIES)
                return entry.bytes
        return 0

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
        """Reserves the room for a shard. Removes what was not used for longest until it fits, but nothing with other names."""
        part.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / LOCKS / "room"):
            names = [self.folder / name / file for name in (TARS, INDEXES) for file in _listed(self.folder / name)]
            own = [path for path in names if NAMES[path.parent.name].fullmatch(path.name)]
            uses = sorted((stat.st_mtime_ns, path) for path in own if path != part and (stat := _stat(path)) is not None)
            sizes = {path: _size(path) for _, path in uses}
            used = sum(sizes.values())
            for _, path in uses:
                if used + size > self.limit and self._remove(path):
                    used -= sizes[path]
            with open(part, "wb") as file:
                file.truncate(size)  # other processes count it from now on

    def _remove(self, path: Path) -> bool:
        """Removes a shard, a dead process's partial file, or a folder of indexes: True if no process is fetching it."""
        if path.suffix == ".tar":
            path.unlink(missing_ok=True)
            return True
        with suppress(BlockingIOError), locked(self.folder / LOCKS / path.name[:64], wait=False) as alone:
            stat = _stat(path)
            if alone or (stat is not None and time.time() - stat.st_mtime > ABANDONED):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
                return True
        return False


def cache_of(folder: str | None, gigabytes: float) -> Cache:
    """The cache that a recipe names, or one in this machine's folder for temporary files. It is not claimed yet."""
    path = Path(folder) if folder else Path(tempfile.gettempdir()) / f"sr_dist-cache-{os.getuid()}"
    return Cache(path, int(gigabytes * 1e9))


def _stat(path: Path) -> os.stat_result | None:
    with suppress(FileNotFoundError):
        return path.stat()
    return None


def _listed(folder: Path) -> list[str]:
    with suppress(FileNotFoundError):
        return os.listdir(folder)
    return []


def _size(path: Path) -> int:
    """Bytes of a file, or of the files in a folder."""
    stats = [_stat(path / name) for name in _listed(path)] if path.is_dir() else [_stat(path)]
    return sum(stat.st_size for stat in stats if stat is not None)


def _append(fetch_log: Path, row: dict[str, Any]) -> None:
    """Appends one line with one write, because several processes share the file. A full disk does not stop the fetch, and
    a run folder that was removed stays away."""
    with suppress(OSError):
        fetch_log.parent.mkdir(exist_ok=True)
        file = os.open(fetch_log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, (json.dumps(row) + "\n").encode())
        finally:
            os.close(file)
