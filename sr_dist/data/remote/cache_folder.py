"""Whose folder a cache is. A cache deletes files, so it takes only a folder that it made or that is empty, and that no one else
can change. A marker file says from then on that the folder is a cache. No torch here.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from sr_dist.core.errors import UserError
from sr_dist.core.formats import refuse_unknown, stamp
from sr_dist.core.json_text import parse_json

FORMAT = 1  # of the marker; caches of 0.2.0 and before have none
MARKER = ".sr_dist-cache"
TARS, LOCKS, INDEXES = "tars", "locks", "indexes"  # the folders of a cache
SHARD = re.compile(r"([0-9a-f]{64})(-[0-9a-f]{8})?\.(tar|part)")  # complete, or being fetched
NAMES = {TARS: SHARD, LOCKS: re.compile("[0-9a-f]{32}|[0-9a-f]{64}|room"), INDEXES: re.compile("[0-9a-f]{32}")}
NFS = ".nfs"  # NFS calls files so that are removed while they are open
ELSEWHERE = "name a folder of your own with data.cache, or set TMPDIR where there is no such key"


def claim(folder: Path) -> None:
    """Makes the folder this user's cache, or raises a UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _refuse_open_to_others(folder)
        _refuse_foreign_content(folder)
        _mark(folder)
        for name in NAMES:
            (folder / name).mkdir(exist_ok=True)
            (folder / name).chmod(0o700)  # whatever the umask is, or was for an earlier version
    except OSError as error:
        raise UserError(f"data.cache: '{folder}' cannot be used: {error.strerror}; {ELSEWHERE}") from None


def _refuse_open_to_others(folder: Path) -> None:
    """Refuses symbolic links, and what belongs to others or can be written by them: they could name our files for deletion."""
    for path in (folder, *(folder / name for name in (*NAMES, MARKER))):
        try:
            facts = path.lstat()
        except FileNotFoundError:
            continue
        if stat.S_ISLNK(facts.st_mode):
            raise UserError(f"data.cache: '{path}' is a symbolic link, which a cache does not follow; {ELSEWHERE}")
        if facts.st_uid != os.getuid():
            raise UserError(f"data.cache: '{path}' belongs to another user; {ELSEWHERE}")
        if stat.S_ISDIR(facts.st_mode) == (path.name == MARKER):
            raise UserError(f"data.cache: '{path}' is not part of a cache; {ELSEWHERE}")
        if path == folder and facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise UserError(f"data.cache: other users can write to '{path}'; run: chmod go-w '{path}'")


def _refuse_foreign_content(folder: Path) -> None:
    """Without a marker, a folder must be empty or have nothing but what earlier versions of the cache made."""
    foreign = None if (folder / MARKER).exists() else next(_foreign(folder), None)
    if foreign and not (folder / MARKER).exists():  # another process may have marked the folder since
        raise UserError(
            f"data.cache: '{folder}' has other files, such as '{foreign}'; name an empty folder, or one that does not exist yet"
        )


def _foreign(folder: Path) -> Iterator[str]:
    for name in sorted(os.listdir(folder)):
        if name not in NAMES:
            yield name
        else:
            inside = [file for file in os.listdir(folder / name) if not file.startswith(NFS)]
            yield from (f"{name}/{file}" for file in inside if not NAMES[name].fullmatch(file))


def _mark(folder: Path) -> None:
    marker = folder / MARKER
    with suppress(FileExistsError):
        file = os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(file, (json.dumps(stamp(FORMAT)) + "\n").encode())
        os.close(file)
    header = {}  # where another process is writing it
    with suppress(ValueError):
        header = parse_json(marker.read_bytes())
    refuse_unknown(header, FORMAT, marker, "data.cache", "name another folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"data.cache: '{folder}' cannot be written; {ELSEWHERE}")
