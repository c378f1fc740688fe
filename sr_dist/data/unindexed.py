"""Tars without an index, which `data.reader: webdataset` streams. No torch here."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sr_dist.core import launch_env
from sr_dist.core.braces import expanded
from sr_dist.core.errors import UserError
from sr_dist.core.passwords import has_hidden, without_passwords
from sr_dist.core.printable import plural
from sr_dist.data.format import FORMAT, Manifest, ShardEntry, Shards, is_url
from sr_dist.recipe.sections import Data

NOT_PROMISED = (
    "that every sample comes exactly once per epoch",
    "that a continued run goes on with the samples that come next",
    "the same batches on another number of ranks or workers",
)
INDEX = "python -m shards.index makes an index, with which data.reader=indexed does"


@dataclass(frozen=True)
class UnindexedTars(Shards):
    """Tars at any address. The manifest has their names and nothing that only an index knows."""

    urls: tuple[str, ...] = ()

    def damage(self) -> Iterator[str]:
        yield from ()

    def check_indexes(self) -> None:
        """There are none."""


def open_unindexed(data: Data, key: str = "data.train") -> UnindexedTars:
    """The tars of a folder, of a brace pattern of files or URLs, or of `pipe:` commands."""
    source = data.sources[0]
    if len(data.sources) > 1:
        raise UserError(f"{key}: {len(data.sources)} sources, and data.reader=webdataset streams one; {INDEX} several")
    if has_hidden(source):
        raise UserError(f"{key}: '{source}' has *** where a password or a token was; give the whole URL: --{key}=...")
    folder = Path(source)
    if folder.is_dir():
        urls = sorted(str(path) for path in folder.glob("*.tar"))
        if not urls:
            raise UserError(f"{key}: '{source}' has no file that ends with .tar")
    else:
        urls = expanded(source, key)
        if not is_url(source) and (missing := next((url for url in urls if not Path(url).is_file()), None)):
            raise UserError(f"{key}: no tar is at '{missing}'")
    entries = tuple(ShardEntry(name=os.path.basename(url), bytes=0, samples=0, sha256="") for url in urls)
    manifest = Manifest(format=FORMAT, samples=data.samples or 0, min_side=0, order={}, shards=entries)
    return UnindexedTars(Path(without_passwords(source)), manifest, tuple(map(_address, urls)))


def without_index(shards: Shards) -> UnindexedTars:
    """Local shards as tars whose index is not used."""
    return UnindexedTars(shards.folder, shards.manifest, tuple(map(str, shards.paths())))


def _address(url: str) -> str:
    """WebDataset has no program for s3://."""
    return f"pipe:aws s3 cp --only-show-errors {shlex.quote(url)} -" if url.startswith("s3://") else url


def check_unindexed(data: Data, tars: UnindexedTars) -> None:
    """Refuses what only an index makes possible, and fewer tars than readers."""
    for key in ("select", "balance", "split"):
        if getattr(data, key):
            raise UserError(f"data.{key}: selects samples before they are read, which data.reader=webdataset cannot; {INDEX}")
    readers = launch_env.num_ranks() * max(data.workers, 1)
    if len(tars.urls) < readers:
        raise UserError(
            f"data.train: {plural(len(tars.urls), 'tar')} for {plural(readers, 'reader')} (ranks times data.workers), each with "
            "tars of its own; "
            f"use fewer data.workers, or more tars"
        )
