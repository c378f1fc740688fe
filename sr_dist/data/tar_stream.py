"""The samples of a tar without an index, at any address, from its beginning to its end. No torch here.

tarfile takes a damaged header for the end of the tar, and does not look at what follows; this does.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import IO, Any

from sr_dist.core.errors import first_line
from sr_dist.core.tar_end import problem_at_end
from sr_dist.data.format import HR_SUFFIXES, ShardError
from sr_dist.data.remote.download import SHARD_TRIES, FetchError, chunks, wait_after
from sr_dist.data.remote.sources import is_remote

PIECE = 1 << 20
SUFFIXES = (*HR_SUFFIXES, *(f"lr.{suffix}" for suffix in HR_SUFFIXES))
META = re.compile(r"__[^/]*__($|/)")  # names that WebDataset leaves out
DAMAGE = (ShardError, OSError, EOFError, ValueError, tarfile.TarError)


def samples(url: str) -> Iterator[dict[str, Any]]:
    """The images of a tar, grouped into samples. A remote tar that fails is opened again, and what was given before is skipped.

    Raises a ShardError, with the reason alone. Tries are counted from the last new sample on, because a tar is read as slowly
    as a training needs it.
    """
    given = failures = 0
    while True:
        try:
            for number, sample in enumerate(_one_try(url)):
                if number == given:
                    given, failures = given + 1, 0
                    yield sample
            return
        except FetchError as error:
            if not is_remote(url):
                raise ShardError(first_line(error)) from None
            failures += 1
            _wait(failures, error, f"the shard '{url}'")


def _wait(failures: int, error: FetchError, name: str) -> None:
    try:
        wait_after(failures, error, name, SHARD_TRIES)
    except ShardError as end:
        raise ShardError(str(end).removeprefix(str(ShardError(name))).strip()) from None


def _one_try(url: str) -> Iterator[dict[str, Any]]:
    from webdataset.tariterators import group_by_keys  # takes long to import

    try:
        with closing(chunks(url)) as content, io.BufferedReader(Stream(content), PIECE) as stream:
            yield from group_by_keys(_members(stream, url))
    except FetchError:
        raise
    except DAMAGE as error:
        raise ShardError(_reason(error)) from None


def _members(stream: IO[bytes], url: str) -> Iterator[dict[str, Any]]:
    """The images, and at the end what tells WebDataset that no sample goes on."""
    with _opened(stream) as tar:
        while (member := _next(tar)) is not None:
            tar.members = []  # type: ignore[attr-defined]  # tarfile would keep all headers in memory
            if member.isreg() and not META.match(member.name) and _is_image(member.name):
                file = tar.extractfile(member)
                assert file
                yield {"fname": member.name, "data": file.read(), "__url__": url}
        if problem := problem_at_end(tar.offset, _next_nonzero(tar.fileobj)):
            raise ShardError(problem)
    _check_end_of_compression(tar.fileobj, stream)
    yield {}


def _check_end_of_compression(content: Any, stream: IO[bytes]) -> None:
    """Reads to the end, where the program behind a URL says whether it has failed. Only zeros may follow compressed data."""
    decompressor, trailer = getattr(content, "cmp", None), 8 if content.comptype == "gz" else 0  # of gzip: checksum and size
    if decompressor and not decompressor.eof:
        raise ShardError("its compressed data are cut off")
    piece = decompressor.unused_data if decompressor else stream.read(PIECE)
    while piece:
        trailer, piece = max(trailer - len(piece), 0), piece[trailer:]
        if piece.strip(b"\0"):
            raise ShardError("its compressed data are followed by others, which would be left out")
        piece = stream.read(PIECE)


def _opened(stream: IO[bytes]) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=stream, mode="r|*", tarinfo=Header)
    except DamagedHeader as error:
        page = error.block.lstrip()[:1] == b"<"
        raise ShardError("it is a web page and no tar" if page else "it is no tar") from None


def _next(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    try:
        return tar.next()
    except DamagedHeader:
        raise ShardError(f"the header at byte {tar.offset} is damaged") from None


def _next_nonzero(file: Any) -> int | None:
    while piece := file.read(PIECE):
        if rest := piece.lstrip(b"\0"):
            return int(file.tell()) - len(rest)
    return None


class DamagedHeader(Exception):
    """A block that is neither a header nor zeros."""

    def __init__(self, block: bytes) -> None:
        super().__init__()
        self.block = block


class Header(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Header:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError:
            if bytes(buf).strip(b"\0"):
                raise DamagedHeader(bytes(buf)) from None
            raise


class Stream(io.RawIOBase):
    """Chunks of bytes as a file."""

    def __init__(self, chunks: Generator[bytes, None, None]) -> None:
        self._chunks, self._rest = chunks, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._rest = self._rest or next(self._chunks, b"")
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


def _reason(error: Exception) -> str:
    """WebDataset adds its stream to the arguments of an error."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return first_line(Exception(error.args[0]) if error.args else error)


def _is_image(name: str) -> bool:
    """Texts and other members are skipped."""
    return name.rpartition("/")[2].partition(".")[2].lower() in SUFFIXES
