"""Fetches one file over HTTP to a temporary name, resumes it, checks it, and renames it.

    .NAME.part        what has arrived; kept when the connection or the process ends, removed when it is another file
    .NAME.part.json   which file that is: address, size, ETag and Last-Modified of the server
    NAME.json         the sha256 of the first fetch, where none is published; later fetches and reads are compared with it

One process fetches a file at a time; others wait for it.
"""

from __future__ import annotations

import errno
import hashlib
import http
import os
import shutil
import time
import urllib.request
from contextlib import suppress
from dataclasses import asdict, dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

from sr_dist.core.errors import first_line
from sr_dist.core.files import locked, sha256, sync, write_json
from sr_dist.core.json_text import read_json
from sr_dist.core.passwords import without_passwords
from sr_dist.core.progress import Progress
from sr_dist.core.version import __version__

PERMANENT = (400, 401, 403, 404, 405, 410, 451)  # not 429 and 503, which are temporary
TRIES = 5  # one after the other without a new byte
FIRST_WAIT = 1.0  # seconds until the second try; doubled before every further one
TIMEOUT = 60.0  # seconds of silence after which a connection is closed
CHUNK = 1 << 20
MB = 1_000_000
UNSATISFIABLE = 416  # the answer to a range that begins behind the end
sleep = time.sleep


class FetchError(Exception):
    """The file could not be fetched. The message says why and what to do."""


class WrongFile(FetchError):
    """What the server sends is not the published file."""


class _Changed(Exception):
    """What has arrived does not belong to what the server has now."""


@dataclass(frozen=True)
class Wanted:
    """What is known of a file before it is fetched. Empty and None: nothing."""

    address: str
    bytes: int | None = None
    sha256: str = ""  # whole, or its first digits
    md5: str = ""

    @property
    def shown(self) -> str:
        """The address for messages and records: one that is signed holds a token."""
        return without_passwords(self.address)


@dataclass(frozen=True)
class Version:
    """What the server says of the file."""

    address: str
    bytes: int | None
    etag: str | None
    modified: str | None


class Part:
    """The part of a file that has arrived, with its digests."""

    def __init__(self, target: Path, suffix: str = "part") -> None:
        self.target = target
        self.path = target.with_name(f".{target.name}.{suffix}")
        self._facts = target.with_name(f".{target.name}.{suffix}.json")
        self._begin()

    def _begin(self) -> None:
        self.size, self._sha256, self._md5 = 0, hashlib.sha256(), hashlib.md5(usedforsecurity=False)

    def resume(self) -> None:
        """Takes over what an earlier process has left."""
        self._begin()
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            while piece := file.read(CHUNK):
                self._count(piece)

    def append(self, piece: bytes) -> None:
        with open(self.path, "ab") as file:
            file.write(piece)
        self._count(piece)

    def _count(self, piece: bytes) -> None:
        self.size += len(piece)
        self._sha256.update(piece)
        self._md5.update(piece)

    def restart(self) -> None:
        os.truncate(self.path, 0)
        self._facts.unlink(missing_ok=True)
        self._begin()

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self._facts.unlink(missing_ok=True)

    def finish(self) -> None:
        sync(self.path)
        os.replace(self.path, self.target)
        self._facts.unlink(missing_ok=True)

    @property
    def version(self) -> Version | None:
        with suppress(OSError, ValueError, TypeError):
            return Version(**read_json(self._facts))
        return None

    @version.setter
    def version(self, version: Version) -> None:
        write_json(self._facts, asdict(version))

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    @property
    def md5(self) -> str:
        return self._md5.hexdigest()


def fetch(wanted: Wanted, target: Path) -> str:
    """Fetches a file unless it exists, and returns its sha256. Raises a FetchError, or an OSError about the folder."""
    with locked(Part(target).path) as alone:
        part = Part(target) if alone else Part(target, f"part{os.getpid()}")
        part.resume()
        resumed = part.size > 0
        try:
            if target.exists():  # another process was faster
                part.remove()
                return sha256(target)
            _receive_all(wanted, part, target.name)
            if resumed and difference(wanted, part.size, part.sha256, part.md5):
                part.restart()  # the file has changed since the first piece, and the server did not say so
                _receive_all(wanted, part, target.name)
            _check(wanted, part)
            part.finish()
        finally:
            if not part.size:
                part.remove()
    return part.sha256


def _check(wanted: Wanted, part: Part) -> None:
    """Refuses another file than the published one or, where no digest is published, than that of the first fetch."""
    first = "" if wanted.sha256 else recorded(part.target).get("sha256", "")
    if problem := difference(wanted, part.size, part.sha256, part.md5):
        part.remove()
        raise WrongFile(f"'{part.target.name}' of {wanted.shown} is not the published file: {problem}; nothing is kept of it")
    if first and first != part.sha256:
        part.remove()
        raise WrongFile(
            f"'{part.target.name}' of {wanted.shown} is not the file of the first fetch; nothing is kept of it; "
            f"delete '{record_file(part.target)}' to accept the new file"
        )
    if not wanted.sha256:
        facts = {"address": wanted.shown, "bytes": part.size, "sha256": part.sha256}
        write_json(record_file(part.target), facts)


def _receive_all(wanted: Wanted, part: Part, name: str) -> None:
    """Tries again, from where the last try ended, as long as tries bring new bytes."""
    meter, failures, changes = _Meter(name), 0, 0
    with meter:
        while True:
            before = part.size
            try:
                return _receive(wanted, part, meter)
            except _Changed:
                changes += 1
                if changes == TRIES:
                    raise FetchError(
                        f"{wanted.shown} was another file at each of {TRIES} requests; name another address in a --table"
                    ) from None
                print(f"note: '{name}' is another file on the server than the part that was fetched; it begins again", flush=True)
                part.restart()
            except (OSError, HTTPException) as problem:
                failures = 1 if part.size > before else failures + 1
                reason = _give_up(problem, failures)
                if reason:
                    raise FetchError(f"'{name}' could not be fetched from {wanted.shown}: {reason}{_resume_note(part)}") from None
                sleep(FIRST_WAIT * 2 ** (failures - 1))


def _receive(wanted: Wanted, part: Part, meter: _Meter) -> None:
    """One request: the file, or the rest of it."""
    begin = part.size if _resumable(wanted, part) else 0
    if part.size and not begin:
        part.restart()
    headers = {"User-Agent": f"sr_dist/{__version__}"} | ({"Range": f"bytes={begin}-"} if begin else {})
    try:
        answer = urllib.request.urlopen(urllib.request.Request(wanted.address, headers=headers), timeout=TIMEOUT)
    except HTTPError as refusal:
        if refusal.code != UNSATISFIABLE or not begin:
            raise
        if part.version and part.version.bytes == begin:
            return  # complete already
        raise _Changed from None
    with answer:
        version = _version(wanted.address, answer, begin)
        if begin and answer.status != http.HTTPStatus.PARTIAL_CONTENT:
            part.restart()  # the server sends all of it
        elif begin and version != part.version:
            raise _Changed
        _check_answer(wanted, part, version, answer)
        part.version = version
        meter.total(version.bytes, part.size)
        while piece := answer.read1(CHUNK):
            part.append(piece)
            meter.reach(part.size)
    if version.bytes is not None and part.size != version.bytes:
        raise ConnectionError(f"the connection ended after {part.size} of {version.bytes} bytes")


def _resumable(wanted: Wanted, part: Part) -> bool:
    """Something tells afterwards whether both pieces belong to one file: the server's version, or a published digest."""
    version = part.version
    if not part.size or version is None or version.address != wanted.address:
        return False
    return bool(version.etag or version.modified or wanted.sha256 or wanted.md5)


def _version(address: str, answer: HTTPResponse, begin: int) -> Version:
    size = answer.headers.get("Content-Length")
    total = int(size) if size and size.isdigit() else None
    if answer.status == http.HTTPStatus.PARTIAL_CONTENT:
        unit, _, rest = answer.headers.get("Content-Range", "").partition(" ")
        place, _, whole = rest.partition("/")
        if unit != "bytes" or not place.startswith(f"{begin}-"):
            raise _Changed
        total = int(whole) if whole.isdigit() else None
    return Version(address, total, answer.headers.get("ETag"), answer.headers.get("Last-Modified"))


def _check_answer(wanted: Wanted, part: Part, version: Version, answer: HTTPResponse) -> None:
    """Refuses, before anything is read, what cannot be the file."""
    if answer.headers.get_content_type() == "text/html":
        raise FetchError(
            f"{wanted.shown} answers with a web page instead of the file: the host may want a confirmation or a login, or its "
            f"quota is reached; fetch it with a browser, put it at '{part.target}', and give this command again, which checks it"
        )
    if version.bytes is None:
        return
    if wanted.bytes and version.bytes != wanted.bytes and not (wanted.sha256 or wanted.md5):  # else the digest decides
        raise WrongFile(f"{wanted.shown} has {version.bytes} bytes, not {wanted.bytes}: it is not the published file")
    free, needed = shutil.disk_usage(part.path.parent).free, version.bytes - part.size
    if needed > free:
        raise FetchError(
            f"'{part.target.name}' needs {needed / MB:,.0f} MB more, but {free / MB:,.0f} MB are free in '{part.path.parent}'"
            f"{_resume_note(part)}"
        )


def _give_up(problem: Exception, failures: int) -> str:
    """Why no further try is made, or nothing."""
    if isinstance(problem, HTTPError):
        reason = f"the server answers {problem.code} {problem.reason}"
        if problem.code in PERMANENT:
            return f"{reason}; the address may have moved: put the file there by hand, or name another address in a --table"
    elif isinstance(problem, URLError):
        reason = f"no connection ({first_line(problem.reason) if isinstance(problem.reason, Exception) else problem.reason})"
    elif isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full ({problem.strerror})"
    elif isinstance(problem, OSError) and problem.filename:
        return f"'{problem.filename}' cannot be written: {problem.strerror}"
    else:
        reason = first_line(problem)
    return f"{reason}; {failures} tries without a new byte" if failures >= TRIES else ""


def _resume_note(part: Part) -> str:
    return f"; {part.size} bytes are kept, and the same command continues" if part.size else ""


class _Meter:
    """Shows the progress once the size is known."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._progress: Progress | None = None

    def total(self, size: int | None, done: int) -> None:
        if self._progress is None and size:
            self._progress = Progress(size // MB, "megabyte", done // MB, about=self._name)

    def reach(self, done: int) -> None:
        if self._progress:
            self._progress.reach(done // MB)

    def __enter__(self) -> _Meter:
        return self

    def __exit__(self, *error: Any) -> None:
        if self._progress:
            self._progress.__exit__(*error)


# -------------------------------------------------------------------------------------------------------------- checks


def difference(wanted: Wanted, size: int, sha256: str, md5: str) -> str | None:
    """How a file differs from the published one, or None. Published digests decide; the size only where there are none."""
    if wanted.sha256 and not sha256.startswith(wanted.sha256):
        return f"its sha256 begins {sha256[:8]}, not {wanted.sha256[:8]}"
    if wanted.md5 and not wanted.sha256 and md5 != wanted.md5:
        return f"its md5 is {md5}, not {wanted.md5}"
    if wanted.bytes and not (wanted.sha256 or wanted.md5) and size != wanted.bytes:
        return f"it has {size} bytes, not {wanted.bytes}"
    return None


def md5_of(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.md5(usedforsecurity=False)
        while piece := file.read(CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def record_file(target: Path) -> Path:
    return target.with_name(f"{target.name}.json")


def recorded(target: Path) -> dict[str, Any]:
    """The record beside a file; empty without one."""
    with suppress(OSError, ValueError):
        content = read_json(record_file(target))
        if isinstance(content, dict) and isinstance(content.get("sha256"), str):
            return content
    return {}
