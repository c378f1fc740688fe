"""Fetches the shards that training will want next, in a thread, so that nobody waits for them. One rank of a node has one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

from sr_dist.core.errors import UserError

Need = tuple[int, Callable[[], None]]  # a position, and what fetches a shard that is wanted from there on


class Ahead:
    """Stays at most `horizon` positions before the position that training has reached."""

    def __init__(self, needs: Iterator[Need], horizon: int, position: int) -> None:
        self._needs, self._horizon, self._position = needs, horizon, position
        self._moved = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="ahead", daemon=True)
        self._thread.start()

    def reached(self, position: int) -> None:
        with self._moved:
            self._position = position
            self._moved.notify()

    def close(self) -> None:
        """What it is fetching just now may still come."""
        with self._moved:
            self._closed = True
            self._moved.notify()

    def _run(self) -> None:
        for position, fetch in self._needs:
            with self._moved:
                self._moved.wait_for(lambda: self._closed or position <= self._position + self._horizon)  # noqa: B023
                if self._closed:
                    return
            with suppress(UserError, OSError):  # whoever reads the shard will meet it, and say so
                fetch()
