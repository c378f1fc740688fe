"""Remote shards: `https://host/folder`, `s3://bucket/folder`, or a command that prints a file.

    pipe:ssh store cat /data/imagenet/{}       {} is replaced by the name of a file: manifest.json, NAME.idx, NAME.tar
    https://host/folder?token=secret           the name of a file is put before the ?

The manifest and the indexes are fetched when the shards are opened, the tars through the node's cache when they are read.
A manifest may name a URL for its tars, but never a command: commands come only from the user. No torch here.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import compress
from pathlib import Path

from sr_dist.core.braces import expanded
from sr_dist.core.errors import UserError
from sr_dist.core.files import DISK_FULL, locked, write_whole
from sr_dist.core.passwords import has_hidden
from sr_dist.data import format as local
from sr_dist.data.format import Index, Manifest, ShardEntry, ShardError, Shards, index_name, largest_index
from sr_dist.data.remote.cache import Cache, cache_of
from sr_dist.data.remote.cache_folder import INDEXES, LOCKS
from sr_dist.data.remote.download import CACHE_FULL, download_bytes, download_file
from sr_dist.data.remote.download_many import SmallFile, can_download_many, download_many

AT_ONCE = 8  # indexes, or processes that fetch many
IN_A_CURL = 64  # indexes that one process fetches: what a kill loses, and what is left to fetch when one is refused
ONE_INDEX = threading.RLock()  # in memory, of those that are fetched at once
DEFAULT_GB = 100.0  # size limit of a cache
SCHEMES = ("http", "https", "s3", "gs", "hf", "ais", "sftp", "ftps", "scp")
WITH_QUERY = ("http://", "https://")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,=@+-]*\.tar")  # means the same in a URL, in a shell and on disk
FOLDER = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.,=@+-]*(/[A-Za-z0-9_.][A-Za-z0-9_.,=@+-]*)*/?")  # a relative path, likewise


@dataclass(frozen=True)
class RemoteShards(Shards):
    """Shards whose tars are fetched. `folder` contains the manifest and the indexes."""

    OPEN_AT_ONCE = 64  # a removed file still takes space on the disk while it is open

    tars: str  # the URL of a folder, or a command
    cache: Cache
    fetch_log: Path | None = None  # the file to which every try to fetch is appended
    source: str | None = None  # of the manifest and the indexes, if they are fetched, too

    def __post_init__(self) -> None:
        for entry in self.manifest.shards:
            if not NAME.fullmatch(entry.name) or not re.fullmatch(r"[0-9a-f]{64}", entry.sha256):
                raise ShardError(f"'{self.tars}': the manifest's entry '{entry.name}' has an unsafe name or an invalid sha256")
        largest = max(entry.bytes for entry in self.manifest.shards)
        if largest > self.cache.limit:
            raise UserError(f"data.cache_gb: {self.cache.limit / 1e9:g} is less than the largest shard, {largest / 1e9:.2g} GB")

    def where(self, shard: int) -> str:
        return address(self.tars, self._entry(shard).name)

    def advice(self) -> str:
        """No advice: the shard was fetched again, so it is also damaged at its source."""
        return ""

    def read_index(self, shard: int) -> Index:
        self._note_use()
        try:
            return super().read_index(shard)
        except ShardError:
            if not self.source or (self.folder / index_name(self._entry(shard).name)).exists():
                raise
        with locked_indexes(self.cache, self.folder):  # which were removed to make room
            _fetch_index(self.source, self.folder, self._entry(shard), self.manifest)
            return super().read_index(shard)

    def open(self, shard: int) -> int:
        self._note_use()
        return self.cache.open(self._entry(shard), address(self.tars, self._entry(shard).name), self.fetch_log)

    def fetch(self, shard: int) -> int:
        """Fetches a shard if it is not cached: its bytes, or 0."""
        self._note_use()
        return self.cache.fetch(self._entry(shard), address(self.tars, self._entry(shard).name), self.fetch_log)

    def _note_use(self) -> None:
        """So that a cache removes indexes after the shards that are as old."""
        if self.source:
            with suppress(FileNotFoundError):
                os.utime(self.folder)

    def forget(self, shard: int) -> bool:
        self.cache.forget(self._entry(shard))
        return True

    def damage(self) -> Iterator[str]:
        """Nothing: the size and the sha256 are checked when a shard is fetched."""
        yield from ()

    def _entry(self, shard: int) -> ShardEntry:
        return self.manifest.shards[shard]


def is_remote(source: str) -> bool:
    return source.startswith(("pipe:", *(f"{scheme}://" for scheme in SCHEMES)))


def address(source: str, name: str) -> str:
    """The URL or the command for a file of the folder."""
    if source.startswith("pipe:"):
        return source.replace("{}", name)
    folder, query = split_query(source)
    return f"{folder.rstrip('/')}/{name}{query}"


def split_query(source: str) -> tuple[str, str]:
    """The address of a folder, and the `?token=...` that belongs behind the name of each file."""
    folder, mark, query = source.partition("?") if source.startswith(WITH_QUERY) else (source, "", "")
    return folder, mark + query


def open_shards(source: str, key: str = "shards", cache: Cache | None = None) -> Shards:
    """Local or remote shards: a folder or a brace pattern, on disk or at a URL, or a command with {}."""
    if has_hidden(source):
        raise UserError(f"{key}: '{source}' has *** where a password or a token was; give the whole URL: --{key}=...")
    if not is_remote(source):
        if local.is_url(source) and not Path(source).exists():
            known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
            raise UserError(f"{key}: '{source}' looks like a URL of an unknown scheme; choose from {known} and pipe:")
        shards = local.open_shards(source, key)
        if not (shards.manifest.tars and local.is_url(shards.manifest.tars)):
            return shards
        cache = cache or cache_of(None, DEFAULT_GB)
        cache.claim()
        return RemoteShards(shards.folder, shards.manifest, tars=shards.manifest.tars, cache=cache)
    if source.startswith("pipe:") and "{}" not in source:
        raise UserError(f"{key}: '{source}' has no {{}} for the name of a file, as in 'pipe:ssh store cat /data/{{}}'")
    (folder, query), pattern = split_query(source), ""
    if not source.startswith("pipe:") and ("{" in folder or folder.endswith(".tar")):
        folder, _, pattern = folder.rpartition("/")
    cache = cache or cache_of(None, DEFAULT_GB)
    cache.claim()
    shards = _fetched(folder + query, key, cache)
    return local.some_of(shards, expanded(pattern, key), key) if pattern else shards


@lru_cache(maxsize=16)
def _fetched(source: str, key: str, cache: Cache) -> RemoteShards:
    """A process fetches a manifest once. Its indexes stay in the cache, in a folder named by the manifest's sha256."""
    try:
        text = download_bytes(address(source, "manifest.json"), "the manifest", local.MAX_MANIFEST)
        folder = cache.folder / INDEXES / hashlib.sha256(text).hexdigest()[:32]
        with locked_indexes(cache, folder):
            write_whole(folder / "manifest.json", text)
            manifest = _manifest(source, folder, key)
            shards = RemoteShards(folder, manifest, tars=_tars(source, manifest.tars), cache=cache, source=source)
            _fetch_indexes(source, folder, manifest)
    except ShardError as error:
        raise ShardError(f"{key}: {str(error).removeprefix(f'{key}: ')}") from None
    except OSError as error:
        if error.errno in DISK_FULL:
            raise ShardError(f"{key}: the manifest of '{source}' could not be kept: {CACHE_FULL}") from None
        raise
    return shards


@contextmanager
def locked_indexes(cache: Cache, folder: Path) -> Iterator[None]:
    """A folder of indexes that no other process fetches or removes meanwhile."""
    with locked(cache.folder / LOCKS / folder.name):
        folder.mkdir(parents=True, exist_ok=True)
        yield


def _manifest(source: str, folder: Path, key: str) -> Manifest:
    try:
        return local.read_manifest(folder, key)
    except ShardError as error:  # its message names a file of the cache
        raise ShardError(f"'{address(source, 'manifest.json')}' is not a manifest: {error}") from None


def _tars(source: str, stated: str | None) -> str:
    """The location of the tars: beside the manifest, in a folder relative to it, or at another URL."""
    if not stated or local.is_url(stated):
        return stated or source
    if not FOLDER.fullmatch(stated):
        raise ShardError(f"the manifest of '{source}': the folder of tars '{stated}' is not a safe relative path")
    return address(source, f"{stated.strip('/')}/{{}}") if source.startswith("pipe:") else address(source, stated)


def _fetch_indexes(source: str, folder: Path, manifest: Manifest) -> None:
    """Saves all indexes that are missing or damaged. Where curl fetches them, a few processes are enough for all."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        complete = pool.map(lambda entry: _is_index(folder / index_name(entry.name), entry), manifest.shards)
        missing = [entry for entry, is_complete in zip(manifest.shards, complete, strict=True) if not is_complete]
        if can_download_many(source, folder) and len(missing) > AT_ONCE:
            groups = [missing[first : first + IN_A_CURL] for first in range(0, len(missing), IN_A_CURL)]
            list(pool.map(lambda entries: _fetch_group(source, folder, entries, manifest), groups))
        else:
            list(pool.map(lambda entry: _fetch_index(source, folder, entry, manifest), missing))


def _fetch_group(source: str, folder: Path, entries: list[ShardEntry], manifest: Manifest) -> None:
    for entry in _fetch_many(source, folder, entries, manifest):
        _fetch_index(source, folder, entry, manifest)


def _fetch_many(source: str, folder: Path, entries: list[ShardEntry], manifest: Manifest) -> list[ShardEntry]:
    """Saves the indexes that come by one try for all, and returns the others."""
    files = []
    for entry in entries:
        name = index_name(entry.name)
        files.append(SmallFile(address(source, name), _temporary(folder / name), largest_index(entry, manifest)))
    try:
        download_many(files)
        correct = [_is_index(small.file, entry) for small, entry in zip(files, entries, strict=True)]
        for small, entry in compress(zip(files, entries, strict=True), correct):
            small.file.replace(folder / index_name(entry.name))
    finally:
        for small in files:
            small.file.unlink(missing_ok=True)
    return [entry for entry, is_correct in zip(entries, correct, strict=True) if not is_correct]


def _temporary(path: Path) -> Path:
    """Other processes may fetch the same where locks do not work."""
    return path.with_suffix(f".{secrets.token_hex(4)}.new")


def _fetch_index(source: str, folder: Path, entry: ShardEntry, manifest: Manifest) -> None:
    """Saves an index under its name after it was checked."""
    path = folder / index_name(entry.name)
    if _is_index(path, entry):
        return
    url, temporary = address(source, path.name), _temporary(path)
    try:
        download_file(url, temporary, "the index", largest_index(entry, manifest))
        try:
            _check_index(temporary, entry)
        except ShardError as error:
            raise ShardError(f"the index '{url}': {error}") from None
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _is_index(path: Path, entry: ShardEntry) -> bool:
    """Whether a file exists and is the index of a shard."""
    with suppress(ShardError):
        _check_index(path, entry)
        return True
    return False


def _check_index(path: Path, entry: ShardEntry) -> None:
    with ONE_INDEX:
        Index(path, entry.samples).check()
