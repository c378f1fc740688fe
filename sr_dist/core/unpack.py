"""Unpacks zip and tar archives into a folder that appears by rename, whole or not at all.

Nothing outside of the folder is written: members with absolute paths or `..`, links and devices are refused before anything is
unpacked, as far as the archive lists them first (zip), or at the latest before the folder appears (tar).
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from sr_dist.core.errors import first_line
from sr_dist.core.files import files_below

CHUNK = 1 << 20
MOST_EXPANSION, SMALL = 200, 1 << 28  # of an archive's bytes, and bytes that every archive may hold: photographs barely shrink
JUNK = ("__MACOSX", ".DS_Store")  # what archivers of macOS add
CLASHES = (FileExistsError, NotADirectoryError, IsADirectoryError)  # a name that occurs twice
Member = tuple[str, IO[bytes]]


class BadArchive(Exception):
    """The archive is damaged, or holds what is not unpacked. The message says which."""


def unpack(archive: Path, folder: Path) -> dict[str, int]:
    """Unpacks into a folder that does not exist yet, without the folders that all members share. -> number and bytes of files.

    Raises a BadArchive, or an OSError about the disk.
    """
    temporary = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    temporary.mkdir(parents=True)
    left = max(MOST_EXPANSION * archive.stat().st_size, SMALL)
    try:
        for name, content in _members(archive):
            target = temporary / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with content, open(target, "xb") as out:
                for piece in iter(partial(content.read, CHUNK), b""):
                    left -= len(piece)
                    if left < 0:
                        raise BadArchive(f"'{archive}' holds more than {MOST_EXPANSION} times its size; nothing is unpacked")
                    out.write(piece)
        inner = _without_shared_folders(temporary)
        counts = contents(inner)
        if not counts["files"]:
            raise BadArchive(f"'{archive}' holds no files")
        os.rename(inner, folder)
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(
                problem.errno, f"the disk is full while '{archive}' is unpacked; nothing of it is left", str(folder)
            ) from None
        if problem.errno in (None, errno.EINVAL) or isinstance(problem, CLASHES):  # EINVAL: an offset before the beginning
            raise BadArchive(f"'{archive}' is damaged, or holds a name twice ({first_line(problem)})") from None
        raise
    except BadArchive:
        raise
    except Exception as problem:  # damage makes tarfile, zipfile and the decompressors raise errors of many types
        raise BadArchive(f"'{archive}' cannot be unpacked: {first_line(problem)}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return counts


def contents(folder: Path) -> dict[str, int]:
    sizes = [path.stat().st_size for path in files_below(folder) if path.is_file()]
    return {"files": len(sizes), "bytes": sum(sizes)}


def _members(archive: Path) -> Iterator[Member]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            infos = [info for info in opened.infolist() if not info.is_dir()]
            for info in infos:
                _check_name(archive, info.filename)
                kind = stat.S_IFMT(info.external_attr >> 16)
                if kind not in (0, stat.S_IFREG):
                    raise BadArchive(f"'{archive}' holds '{info.filename}', which is no file")
            yield from ((info.filename, opened.open(info)) for info in infos if not _is_junk(info.filename))
        return
    with tarfile.open(archive, "r:*") as tar:
        for member in tar:
            if member.isdir():
                continue
            _check_name(archive, member.name)
            content = tar.extractfile(member) if member.isreg() else None
            if content is None:
                raise BadArchive(f"'{archive}' holds '{member.name}', which is no file")
            if _is_junk(member.name):
                content.close()
                continue
            yield member.name, content
        _check_end(archive, tar)


def _check_end(archive: Path, tar: tarfile.TarFile) -> None:
    """Only zeros follow the last member. tarfile itself takes a damaged header for the end, and reads no checksum of gzip."""
    assert tar.fileobj
    tar.fileobj.seek(tar.offset)
    while piece := tar.fileobj.read(CHUNK):
        if piece.strip(b"\0"):
            raise BadArchive(f"'{archive}' is damaged after its member '{tar.getnames()[-1] if tar.getnames() else ''}'")


def _check_name(archive: Path, name: str) -> None:
    parts = PurePosixPath(name).parts
    if not parts:
        raise BadArchive(f"'{archive}' holds a file without a name; nothing is unpacked")
    if name.startswith("/") or ".." in parts or "\\" in name or ":" in parts[0]:
        raise BadArchive(f"'{archive}' holds '{name}', which leads out of the folder; nothing is unpacked")


def _is_junk(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return parts[0] in JUNK or parts[-1] in JUNK


def _without_shared_folders(folder: Path) -> Path:
    while len(inside := list(folder.iterdir())) == 1 and inside[0].is_dir():
        folder = inside[0]
    return folder
