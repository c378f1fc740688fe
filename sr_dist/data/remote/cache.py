"""A node's own folder of fetched shards: each is fetched once, by one process, and stays while there is room.

    tars/SHA256.tar      whole and checked, or not there; its time says when it was last opened
    tars/SHA256.part     on its way; renamed after its size and sha256 were found right
    locks/               held by living processes only

Whatever is open survives its removal, so shards are removed while others read them. No torch here.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import random
import select
import shlex
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

from sr_dist.core.errors import UserError, first_line
from sr_dist.data.format import ShardEntry, ShardError

TRIES, FEW_TRIES = 7, 5  # for a shard; for the small files that a mistyped address lacks
FIRST_WAIT = 1.0  # seconds until the second try; doubled for every further one
PATIENCE = 120.0  # seconds of silence after which a connection is given up
SILENCE = 10.0  # seconds of it after which one is told
PIECE = 1 << 20
CURL = {
    6: "there is no such host", 7: "nobody answers there", 18: "the connection broke off",
    28: "it takes too long", 35: "no secure connection", 52: "an empty answer", 56: "the connection broke off",
}  # fmt: skip
CALL = ("curl", "--connect-timeout", "30", "-f", "-s", "-L")  # as gopen calls it, but for its tries, for those here are enough
REFUSAL = 22  # curl's word for any answer from 400 on
FOR_GOOD = (400, 401, 403, 404, 405, 410, 451)  # and not 429 or 503, which pass
logger = logging.getLogger("sr_dist")


class Fetch(Exception):
    """One try that went wrong."""


class Refused(Fetch):
    """The next try would go wrong in the same way."""


@dataclass(frozen=True)
class Cache:
    folder: Path
    limit: int  # bytes of shards

    def open(self, entry: ShardEntry, url: str, ledger: Path | None = None) -> int:
        """A descriptor of the shard, which is fetched if it is not here."""
        path = self.folder / "tars" / f"{entry.sha256}.tar"
        while True:
            self.fetch(entry, url, ledger)
            with suppress(FileNotFoundError):  # removed for others in between
                return os.open(path, os.O_RDONLY)

    def fetch(self, entry: ShardEntry, url: str, ledger: Path | None = None) -> None:
        """Makes sure that the shard is here. Processes that ask for the same one wait for the first."""
        path = self.folder / "tars" / f"{entry.sha256}.tar"
        if self._fresh(path, entry):
            return
        with locked(self.folder / "locks" / entry.sha256):
            if not self._fresh(path, entry):
                retried(lambda: self._fetch(entry, url, path, ledger), f"the shard '{shown(url)}'", TRIES)

    def forget(self, entry: ShardEntry) -> None:
        """For a shard whose bytes have changed since it was checked."""
        (self.folder / "tars" / f"{entry.sha256}.tar").unlink(missing_ok=True)

    def _fresh(self, path: Path, entry: ShardEntry) -> bool:
        """Whether it is here; then it was used just now. A size that is wrong is what a crash of the machine leaves."""
        with suppress(FileNotFoundError):
            if path.stat().st_size == entry.bytes:
                os.utime(path)
                return True
            path.unlink()
        return False

    def _fetch(self, entry: ShardEntry, url: str, path: Path, ledger: Path | None) -> None:
        part = path.with_suffix(".part")
        problem, count = None, [0]
        try:
            self._make_room(part, entry.bytes)
            _download(url, part, entry, count)
            os.replace(part, path)
        except (Fetch, OSError) as caught:
            problem = first_line(caught)
            part.unlink(missing_ok=True)
            raise
        finally:
            if ledger is not None:
                _note(ledger, {"shard": entry.name, "bytes": count[0], "problem": problem})

    def _make_room(self, part: Path, size: int) -> None:
        """Takes the room for a shard: removes what was not used for the longest time, until it fits."""
        part.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / "locks" / "room"):
            there = sorted(
                (found.st_mtime_ns, found.st_size, path) for path in part.parent.iterdir() if (found := _stat(path)) is not None
            )
            used = sum(size for _, size, path in there if path != part)
            for _, freed, path in there:
                if used + size > self.limit and path != part and self._is_free(path):
                    path.unlink(missing_ok=True)
                    used -= freed
            with open(part, "wb") as file:
                file.truncate(size)  # so that others count it

    def _is_free(self, path: Path) -> bool:
        """Whether nobody fetches it just now: true of whole shards, and of what a dead process left."""
        if path.suffix != ".part":
            return True
        with open(self.folder / "locks" / path.stem, "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return False
        return True


def cache_of(folder: str | None, gigabytes: float) -> Cache:
    """The cache that a recipe names, or one in this machine's folder for temporary files."""
    path = Path(folder) if folder else Path(tempfile.gettempdir()) / f"sr_dist-cache-{os.getuid()}"
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        owner = path.stat().st_uid
    except OSError as problem:
        raise UserError(f"data.cache: '{path}' cannot be made: {problem.strerror}") from None
    if not folder and owner != os.getuid():
        raise UserError(f"data.cache: '{path}' belongs to somebody else; name a folder of your own")
    return Cache(path, int(gigabytes * 1e9))


# ------------------------------------------------------------------------------------------------------------ fetching


def small_file(url: str, what: str) -> bytes:
    """A manifest or an index, held in memory."""
    return retried(lambda: b"".join(_pieces(url)), f"{what} '{shown(url)}'", FEW_TRIES)


def retried(attempt: Callable[[], Any], what: str, tries: int) -> Any:
    for number in range(1, tries + 1):
        try:
            return attempt()
        except Refused as problem:
            raise ShardError(f"{what} could not be fetched: {first_line(problem)}") from None
        except (Fetch, OSError) as problem:
            if number == tries:
                raise ShardError(f"{what} could not be fetched in {tries} tries: {first_line(problem)}") from None
            wait = FIRST_WAIT * 2 ** (number - 1) * random.uniform(0.75, 1.25)
            logger.warning(f"{what}: {first_line(problem)}; try {number + 1} of {tries} in {wait:.1f} s")
            sleep(wait)
    raise AssertionError("unreachable")


def _download(url: str, part: Path, entry: ShardEntry, count: list[int]) -> None:
    """Writes to the reserved file what comes; more or less than the manifest says is refused."""
    digest = hashlib.sha256()
    with open(part, "r+b") as file:
        for piece in _pieces(url):
            count[0] += len(piece)
            if count[0] > entry.bytes:
                raise Fetch(f"more than the {entry.bytes} bytes came that the manifest says")
            digest.update(piece)
            file.write(piece)
        if count[0] != entry.bytes:
            raise Fetch(f"{count[0]} bytes came where the manifest says {entry.bytes}")
        if digest.hexdigest() != entry.sha256:
            raise Fetch("what came does not have the sha256 that the manifest says")
        file.flush()
        os.fsync(file.fileno())


def _pieces(url: str) -> Iterator[bytes]:
    """What WebDataset's gopen gives for a URL. Silence of the program behind it is a failure, as is an end without success."""
    from webdataset.gopen import Pipe, gopen, gopen_schemes

    if url.startswith("s3://") and "s3" not in gopen_schemes:
        url = f"pipe:aws s3 cp --only-show-errors {shlex.quote(url)} -"
    try:
        web = url.startswith(("http://", "https://"))
        stream = Pipe([*CALL, url], mode="rb", bufsize=PIECE) if web else gopen(url, bufsize=PIECE)
    except (OSError, ValueError) as problem:
        raise Fetch(f"it cannot be opened: {first_line(problem)}") from None
    program = getattr(stream, "proc", None)
    try:
        while piece := stream.read(PIECE) if program is None else _next_piece(program.stdout, url):
            yield piece
        code = 0 if program is None else program.wait()
        if code == REFUSAL and web:
            raise _refusal(url)
        if code:
            raise Fetch(CURL.get(code, f"curl ended with {code}") if web else f"the command ended with {code}")
    finally:
        if program is not None:
            program.kill()
        with suppress(OSError):
            stream.close()


def _refusal(url: str) -> Fetch:
    """curl does not say why a server refuses; asked again, it may say that there is no such file, for which nobody need wait."""
    try:
        urlopen(url, timeout=PATIENCE).close()
    except HTTPError as answer:
        said = f"the server answers {answer.code} {answer.reason}"
        return Refused(said) if answer.code in FOR_GOOD else Fetch(said)
    except (OSError, ValueError):
        pass
    return Fetch("the server refuses it")


def _next_piece(pipe: Any, url: str) -> bytes:
    if not select.select([pipe], [], [], SILENCE)[0]:
        logger.warning(f"still waiting for '{shown(url)}': nothing came for {SILENCE:.0f} s; given up after {PATIENCE:.0f} s")
        if not select.select([pipe], [], [], PATIENCE - SILENCE)[0]:
            raise Fetch(f"nothing came for {PATIENCE:.0f} s")
    return os.read(pipe.fileno(), PIECE)


def shown(url: str) -> str:
    """The URL without what may be secret in it."""
    parts = urlsplit(url)
    if url.startswith("pipe:") or "@" not in parts.netloc:
        return url
    return url.replace(parts.netloc, parts.netloc.rsplit("@", 1)[1], 1)


# ------------------------------------------------------------------------------------------------------------ files


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Held by one thread of one process, until it ends in whatever way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # whoever else has inherited it


def _stat(path: Path) -> os.stat_result | None:
    with suppress(FileNotFoundError):
        return path.stat()
    return None


def _note(ledger: Path, row: dict[str, Any]) -> None:
    """One line at the end of a file that several processes of a node write. A full disk must not undo what was fetched."""
    with suppress(OSError):
        ledger.parent.mkdir(parents=True, exist_ok=True)
        line = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(line, (json.dumps(row) + "\n").encode())
        finally:
            os.close(line)
