"""Keeps two commands from building the same shards at once. Tasks with other shards may work in the same folder.

Each command locks as many bytes of the plan file as it has shards, at their places: such locks work on NFS as well, nothing
has to be removed after a kill, and the ranges of different tasks do not meet.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from shards.build_files import PLAN_FILE
from sr_dist.core.errors import UserError
from sr_dist.core.files import NO_LOCKS

FINISHED = "another command has just finished the build in"


@contextmanager
def building(out: Path, shards: range) -> Iterator[None]:
    """Holds the lock of these shards. The plan file must not be opened again meanwhile, since closing it gives the lock up."""
    while True:
        try:
            plan = open(out / PLAN_FILE, "r+b")  # noqa: SIM115 - closed below
        except FileNotFoundError:
            raise UserError(f"OUT: {FINISHED} '{out}'") from None
        with plan:
            if shards:  # a task may have none, and a length of 0 means all
                _lock(plan, out, shards)
            if _is_still(plan, out / PLAN_FILE):
                yield
                return


def _is_still(plan: IO[bytes], path: Path) -> bool:
    """Whether the file that is locked is the one that others open: tasks that begin together write the same plan in turn."""
    try:
        return os.path.samestat(os.fstat(plan.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _lock(plan: IO[bytes], out: Path, shards: range) -> None:
    try:
        fcntl.lockf(plan, fcntl.LOCK_EX | fcntl.LOCK_NB, len(shards), shards.start)
    except OSError as problem:
        if problem.errno not in NO_LOCKS:
            raise UserError(f"OUT: another command builds these shards in '{out}' at this moment; wait for its end") from None
        print(f"note: '{out}' is on a file system without locks: a second build is not refused", flush=True)
