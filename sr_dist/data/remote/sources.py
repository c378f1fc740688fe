"""Shards that are elsewhere: `https://host/folder`, `s3://bucket/folder`, or a command that prints a file.

    pipe:ssh store cat /data/imagenet/{}       {} is where the name of a file is put: manifest.json, NAME.idx, NAME.tar

Manifest and indexes are fetched when the shards are opened; tars go through the node's cache when they are read.
A manifest may say that its tars are at some URL, but never a command: those come from the user's own hand alone.
No torch here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sr_dist.core.errors import UserError
from sr_dist.core.files import write_whole
from sr_dist.data import format as local
from sr_dist.data.format import Index, Manifest, ShardEntry, ShardError, Shards, index_name
from sr_dist.data.remote.cache import Cache, cache_of, locked, shown, small_file

DEFAULT_GB = 100.0  # of a cache, where nothing else is said
SCHEMES = ("http", "https", "s3", "gs", "hf", "ais", "sftp", "ftps", "scp")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,=@+-]*\.tar")  # so that it means the same in a URL, to a shell and on disk
FOLDER = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.,=@+-]*(/[A-Za-z0-9_.][A-Za-z0-9_.,=@+-]*)*/?")  # for the same reason; relative


@dataclass(frozen=True)
class RemoteShards(Shards):
    """Shards whose tars are fetched. `folder` has the manifest and the indexes."""

    OPEN_AT_ONCE = 64  # what the cache has removed keeps its room on the disk while it is open

    tars: str  # a URL of a folder, or a command
    cache: Cache
    ledger: Path | None = None  # where every try to fetch is written down

    def __post_init__(self) -> None:
        for entry in self.manifest.shards:
            if not NAME.fullmatch(entry.name) or not re.fullmatch(r"[0-9a-f]{64}", entry.sha256):
                raise ShardError(f"'{shown(self.tars)}': the manifest's entry of '{entry.name}' is none that can be fetched")
        largest = max(entry.bytes for entry in self.manifest.shards)
        if largest > self.cache.limit:
            raise UserError(f"data.cache_gb: {self.cache.limit / 1e9:g} is less than the largest shard, {largest / 1e9:.2g} GB")

    def where(self, shard: int) -> str:
        return shown(address(self.tars, self._entry(shard).name))

    def advice(self) -> str:
        """None: it was fetched again before this is said, so it is the same where it came from."""
        return ""

    def open(self, shard: int) -> int:
        return self.cache.open(self._entry(shard), address(self.tars, self._entry(shard).name), self.ledger)

    def fetch(self, shard: int) -> None:
        self.cache.fetch(self._entry(shard), address(self.tars, self._entry(shard).name), self.ledger)

    def forget(self, shard: int) -> bool:
        self.cache.forget(self._entry(shard))
        return True

    def damage(self) -> Iterator[str]:
        """Nothing: sizes are checked, with the sha256, when a shard arrives."""
        yield from ()

    def _entry(self, shard: int) -> ShardEntry:
        return self.manifest.shards[shard]


def is_remote(source: str) -> bool:
    return source.startswith(("pipe:", *(f"{scheme}://" for scheme in SCHEMES)))


def address(source: str, name: str) -> str:
    """Where a file of the folder is."""
    return source.replace("{}", name) if source.startswith("pipe:") else f"{source.rstrip('/')}/{name}"


def open_shards(source: str, key: str = "shards", cache: Cache | None = None) -> Shards:
    """Shards wherever they are: a folder or a brace pattern, here or at a URL, or a command with {}."""
    if not is_remote(source):
        if local.is_url(source) and not Path(source).exists():
            known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
            raise UserError(f"{key}: '{source}' looks like an address, but of an unknown kind; known are {known} and pipe:")
        shards = local.open_shards(source, key)
        if not (shards.manifest.tars and local.is_url(shards.manifest.tars)):
            return shards
        return RemoteShards(shards.folder, shards.manifest, tars=shards.manifest.tars, cache=cache or cache_of(None, DEFAULT_GB))
    if source.startswith("pipe:") and "{}" not in source:
        raise UserError(f"{key}: '{source}' has no {{}}, where the name of a file is put, as in 'pipe:ssh store cat /data/{{}}'")
    folder, pattern = source, ""
    if not source.startswith("pipe:") and ("{" in source or source.endswith(".tar")):
        folder, _, pattern = source.rpartition("/")
    shards = _fetched(folder, key, cache or cache_of(None, DEFAULT_GB))
    return local.some_of(shards, local.expanded(pattern, key), key) if pattern else shards


@lru_cache(maxsize=16)
def _fetched(source: str, key: str, cache: Cache) -> RemoteShards:
    """A process asks for a manifest once; its indexes stay in the cache under the manifest's own name."""
    try:
        text = small_file(address(source, "manifest.json"), "the manifest")
        folder = cache.folder / "indexes" / hashlib.sha256(text).hexdigest()[:32]
        folder.mkdir(parents=True, exist_ok=True)
        with locked(cache.folder / "locks" / folder.name):
            write_whole(folder / "manifest.json", text)
            manifest = _manifest(source, folder, key)
            shards = RemoteShards(folder, manifest, tars=_tars(source, manifest.tars), cache=cache)
            with ThreadPoolExecutor(8) as side_by_side:
                list(side_by_side.map(lambda entry: _fetch_index(source, folder, entry), shards.manifest.shards))
    except ShardError as problem:
        raise ShardError(f"{key}: {str(problem).removeprefix(f'{key}: ')}") from None
    return shards


def _manifest(source: str, folder: Path, key: str) -> Manifest:
    try:
        return local.read_manifest(folder, key)
    except ShardError as problem:  # it names a file of the cache
        raise ShardError(f"'{shown(address(source, 'manifest.json'))}' is no manifest: {problem}") from None


def _tars(source: str, stated: str | None) -> str:
    """Where the tars of a fetched manifest are: beside it, in a folder named from there, or at another URL."""
    if not stated or local.is_url(stated):
        return stated or source
    if not FOLDER.fullmatch(stated):
        raise ShardError(f"the manifest of '{shown(source)}' has its tars in '{stated}', which cannot be part of an address")
    return address(source, f"{stated.strip('/')}/{{}}") if source.startswith("pipe:") else address(source, stated)


def _fetch_index(source: str, folder: Path, entry: ShardEntry) -> None:
    """Under its name when it is known to be whole."""
    path = folder / index_name(entry.name)
    with suppress(ShardError):  # not there, or no longer what it was
        Index(path).check()
        return
    url = address(source, path.name)
    aside = path.with_suffix(".new")
    write_whole(aside, small_file(url, "the index"))
    try:
        index = Index(aside)
        index.check()
    except ShardError as problem:
        raise ShardError(f"the index '{shown(url)}': {problem}") from None
    if len(index) != entry.samples:
        raise ShardError(f"the index '{shown(url)}' lists {len(index)} samples where the manifest says {entry.samples}")
    aside.replace(path)
