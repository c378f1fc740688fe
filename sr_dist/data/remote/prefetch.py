"""Fetches the shards that training will read next, in a thread. One rank per node does this."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

from sr_dist.core.errors import UserError

FetchTask = tuple[int, Callable[[], None]]  # the first position that needs a shard, and a function that fetches it


class Prefetcher:
    """Fetches shards that are needed up to `horizon` positions after the current position of training."""

    def __init__(self, tasks: Iterator[FetchTask], horizon: int, position: int) -> None:
        self._tasks, self._horizon, self._position = tasks, horizon, position
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()

    def advance(self, position: int) -> None:
        """Sets the current position."""
        with self._changed:
            self._position = position
            self._changed.notify()

    def close(self) -> None:
        """Stops the thread. A fetch in progress is completed."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _run(self) -> None:
        for position, fetch in self._tasks:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or position <= self._position + self._horizon)  # noqa: B023
                if self._closed:
                    return
            with suppress(UserError, OSError):  # the reader of the shard meets the same error and raises it
                fetch()
