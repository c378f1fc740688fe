"""Fetches many small files by one curl, over one connection. Starting a program for each takes longer than its bytes. No torch.

It is a first try. Files that it leaves out, `download` fetches one by one, and its errors say what is wrong with them.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from sr_dist.data.remote.download import BY_CURL, CURL, WARN_AFTER

POLL = 0.2  # seconds between two looks at the sizes
# The first failure ends it, also silence, so that a server that is down is met once and not at every file.
FIRST_TRY = (*CURL, "--fail-early", "--speed-limit", "1", "--speed-time", f"{WARN_AFTER:.0f}", "--config", "-")


class SmallFile(NamedTuple):
    url: str
    file: Path  # which is written
    most: int  # bytes


def can_download_many(source: str, folder: Path) -> bool:
    """Whether curl fetches the files, and their addresses and their place can stand in its configuration."""
    return source.startswith(BY_CURL) and f"{source}{folder}".isprintable()


def download_many(files: Sequence[SmallFile]) -> None:
    """Writes what arrives. Files may be missing, cut short or something else afterwards: the caller checks them."""
    config = "".join(f"url = {_quoted(small.url)}\noutput = {_quoted(str(small.file))}\n" for small in files)
    nothing = subprocess.DEVNULL
    line = [*FIRST_TRY, "--max-filesize", str(max(small.most for small in files))]  # if this process is killed, nobody else looks
    with suppress(OSError), subprocess.Popen(line, stdin=subprocess.PIPE, stdout=nothing, stderr=nothing) as curl:
        try:
            assert curl.stdin
            with suppress(BrokenPipeError), curl.stdin as stdin:
                stdin.write(config.encode())
            while not _ended(curl) and not any(_is_too_large(small) for small in files):
                pass
        finally:
            curl.kill()


def _quoted(text: str) -> str:
    """As a word of curl's configuration."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _ended(process: subprocess.Popen[bytes]) -> bool:
    with suppress(subprocess.TimeoutExpired):
        process.wait(POLL)
    return process.returncode is not None


def _is_too_large(small: SmallFile) -> bool:
    return small.file.exists() and small.file.stat().st_size > small.most
