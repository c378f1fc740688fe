"""Writes that fail while a run trains, on a disk that is full: `on_save_error` says whether training goes on without them."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from sr_dist.core import launch_env

logger = logging.getLogger("sr_dist")


class WriteFailed(RuntimeError):
    """A record of the run could not be written."""


class LostWrites:
    """Counts the writes of one rank that failed, warns at the first one of each file, and says at the end how many there were."""

    def __init__(self, tolerate: bool = False) -> None:
        self.tolerate = tolerate
        self._count = Counter[str]()

    @contextmanager
    def around(self, name: str, tolerate: bool = False) -> Iterator[None]:
        """Around a write to the file of this name in the run folder."""
        try:
            yield
        except OSError as problem:
            if not (self.tolerate or tolerate):
                raise WriteFailed(
                    f"{name} could not be written ({problem.strerror}); on_save_error: continue goes on"
                ) from problem
            self._count[name] += 1
            if self._count[name] == 1:
                _warn(f"warning: {name} cannot be written ({problem.strerror}); training goes on")

    def report(self) -> None:
        for name, count in self._count.items():
            _warn(f"warning: writes to {name} that failed and are lost: {count}")


def _warn(text: str) -> None:
    logger.info(text)
    if launch_env.rank():  # only the first rank has a log
        print(f"rank {launch_env.rank()}: {text}", file=sys.stderr, flush=True)
