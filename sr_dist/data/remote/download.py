"""Downloads files through WebDataset's gopen, and retries what fails. No torch here."""

from __future__ import annotations

import hashlib
import http
import logging
import os
import random
import re
import select
import shlex
import subprocess
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from time import sleep
from typing import IO, TypeVar

from sr_dist.core.errors import first_line
from sr_dist.core.fetch_file import PERMANENT
from sr_dist.core.files import DISK_FULL
from sr_dist.data.format import ShardEntry, ShardError

SHARD_TRIES = 7
SMALL_FILE_TRIES = 5  # fewer, because a mistyped address shows with the small files
FIRST_WAIT = 1.0  # seconds until the second try; doubled before every further one
TIMEOUT = 120.0  # seconds of silence after which a connection is closed
WARN_AFTER = 10.0  # seconds of silence after which a warning is logged
CHUNK = 1 << 20
CACHE_FULL = "the disk of data.cache is full; make room there, or set data.cache to a folder on another disk"
CURL_ERRORS = {
    1: "the protocol is unknown, or not one to be redirected to", 3: "the URL is malformed", 47: "too many redirects",
    6: "unknown host", 7: "connection refused", 18: "the connection was lost", 28: "timeout",
    35: "the TLS handshake failed", 52: "empty response", 56: "the connection was lost",
}  # fmt: skip
# As in gopen, but without its retries, because ours are enough, and with -g: brackets in a URL are no patterns.
# With -S, a line on stderr has the status.
CURL = ("curl", "-g", "--connect-timeout", "30", "-f", "-s", "-S", "-L")
BY_CURL = ("http://", "https://", "sftp://", "ftps://", "scp://")
HTTP_ERROR = 22  # curl's exit code for any response from 400 on
CURL_PERMANENT = (1, 3, 47)
Result = TypeVar("Result")
logger = logging.getLogger("sr_dist")


class FetchError(Exception):
    """A try that failed."""


class PermanentError(FetchError):
    """A try whose repetition would fail in the same way."""


def download_bytes(url: str, kind: str, most: int) -> bytes:
    """The content of a small file, such as a manifest, of at most so many bytes. `kind` names it in errors."""
    return retry(lambda: b"".join(_limited(url, most)), f"{kind} '{url}'", SMALL_FILE_TRIES)


def download_file(url: str, file: Path, kind: str, most: int) -> None:
    """The same into a file, because several are fetched at once, and they may be large."""

    def attempt() -> None:
        with open(file, "wb") as out:
            out.writelines(_limited(url, most))

    retry(attempt, f"{kind} '{url}'", SMALL_FILE_TRIES)


def _limited(url: str, most: int) -> Iterator[bytes]:
    size = 0
    for chunk in chunks(url):
        size += len(chunk)
        if size > most:
            raise PermanentError(f"the server sends more than {most} bytes, the most that it can have")
        yield chunk


def download(url: str, file: Path, entry: ShardEntry, on_bytes: Callable[[int], None]) -> None:
    """One try to write a shard to an existing file; its size and sha256 must match. Reports the bytes as they arrive."""
    digest, size = hashlib.sha256(), 0
    with open(file, "r+b") as out:
        for chunk in chunks(url):
            on_bytes(len(chunk))
            size += len(chunk)
            if size > entry.bytes:
                raise FetchError(f"received more than the {entry.bytes} bytes of the manifest")
            digest.update(chunk)
            out.write(chunk)
        if size != entry.bytes:
            raise FetchError(f"received {size} bytes, but the manifest says {entry.bytes}")
        if digest.hexdigest() != entry.sha256:
            raise FetchError("the sha256 does not match the manifest")
        out.flush()
        os.fsync(out.fileno())


def retry(attempt: Callable[[], Result], name: str, tries: int) -> Result:
    """The result of `attempt`, which is called up to `tries` times. `name` names the file in messages."""
    for number in count(1):
        try:
            return attempt()
        except (FetchError, OSError) as error:
            wait_after(number, error, name, tries)
    raise AssertionError("unreachable")


def wait_after(number: int, error: FetchError | OSError, name: str, tries: int) -> None:
    """Waits after a try that has failed, or raises a ShardError where another one is of no use or one too many."""
    reason = first_line(error)
    if isinstance(error, PermanentError):
        raise ShardError(f"{name} could not be fetched: {reason}") from None
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        raise ShardError(f"{name} could not be kept: {CACHE_FULL}") from None
    if number == tries:
        raise ShardError(f"{name} could not be fetched in {tries} tries: {reason}") from None
    wait = FIRST_WAIT * 2 ** (number - 1) * random.uniform(0.75, 1.25)
    logger.warning(f"{name}: {reason}; try {number + 1} of {tries} in {wait:.1f} s")
    sleep(wait)


def chunks(url: str) -> Generator[bytes, None, None]:
    """The content of a URL. It fails where the program behind it is silent for too long or ends with an error."""
    from webdataset.gopen import Pipe, gopen, gopen_schemes  # takes long to import

    if url.startswith("s3://") and "s3" not in gopen_schemes:
        url = f"pipe:aws s3 cp --only-show-errors {shlex.quote(url)} -"
    try:
        curl = url.startswith(BY_CURL)
        stream = Pipe([*CURL, url], mode="rb", bufsize=CHUNK, stderr=subprocess.PIPE) if curl else gopen(url, bufsize=CHUNK)
    except (OSError, ValueError) as error:
        raise FetchError(f"it cannot be opened: {getattr(error, 'strerror', None) or first_line(error)}") from None
    program = getattr(stream, "proc", None)
    try:
        while chunk := stream.read(CHUNK) if program is None else _next_chunk(program.stdout, url):
            yield chunk
        code = 0 if program is None else program.wait()
        if code and curl and program:
            raise _curl_error(code, program.stderr.read(CHUNK))
        if code:
            raise FetchError(f"the command ended with {code}")
    finally:
        if program is not None:
            program.kill()
        with suppress(OSError):
            stream.close()
        if curl and program:
            program.stderr.close()


def _curl_error(code: int, message: bytes) -> FetchError:
    """`message` is curl's. A server's own text is not repeated. A permanent error is not retried."""
    status = re.search(rb"returned error: (\d{3})", message)
    if code != HTTP_ERROR or not status:
        kind = PermanentError if code in CURL_PERMANENT else FetchError
        return kind(CURL_ERRORS.get(code, f"curl ended with {code}"))
    number = int(status[1])
    name = http.HTTPStatus(number).phrase if number in list(http.HTTPStatus) else ""
    return (PermanentError if number in PERMANENT else FetchError)(f"the server answers {number} {name}".rstrip())


def _next_chunk(pipe: IO[bytes], url: str) -> bytes:
    if not select.select([pipe], [], [], WARN_AFTER)[0]:
        waited = f"nothing received for {WARN_AFTER:.0f} s"
        logger.warning(f"still waiting for '{url}': {waited}; timeout after {TIMEOUT:.0f} s")
        if not select.select([pipe], [], [], TIMEOUT - WARN_AFTER)[0]:
            raise FetchError(f"nothing received for {TIMEOUT:.0f} s")
    return os.read(pipe.fileno(), CHUNK)
