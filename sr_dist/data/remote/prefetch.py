"""Fetches the shards that training will read next, in threads. One rank per node does this.

How many shards are fetched at a time, and how far ahead, follows from measured rates: the bytes that steps read per second of
their own time, without the wait for data, and the bytes per second of one download. Keys of the recipe take precedence.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic

from sr_dist.core.errors import UserError
from sr_dist.core.printable import plural

FetchTask = tuple[
    int, Callable[[], int]
]  # the first position that needs a shard, and a function that fetches it: its bytes, or 0
START, MOST = 2, 16  # downloads at a time: before anything is measured, and at most
MARGIN = 1.25  # times what the steps read is fetched, if the store gives it
GAIN = 1.15  # times the bytes per second that more downloads at a time must give, or they share a link that is full
MEMORY = 0.9  # of earlier steps in the measured speed
logger = logging.getLogger("sr_dist")


@dataclass(frozen=True)
class Limits:
    """What determines the depth beside the measured rates. `at_once` and `ahead` are the recipe's."""

    horizon: int  # positions that are fetched ahead in any case
    most_horizon: int  # positions for which the cache has room
    most_at_once: int  # shards for which it has room while they are fetched
    position_bytes: float  # that this node fetches for a position
    shard_bytes: float  # of an average shard
    at_once: int | None = None
    ahead: int | None = None  # shards


class Depth:
    """The number of downloads at a time, and of positions ahead."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.at_once = limits.at_once or min(START, limits.most_at_once)
        self.horizon = limits.horizon
        if limits.ahead:
            self.horizon = math.ceil(limits.ahead * limits.shard_bytes / limits.position_bytes)
        self._positions = self._seconds = 0.0  # of the last steps
        self._downloads: list[tuple[int, float]] = []  # bytes and seconds, since `at_once` has changed
        self._given = 0.0  # bytes per second of all downloads before it has changed
        self._logged = (self.at_once, self._ahead)

    @property
    def _ahead(self) -> int:
        """The horizon in shards."""
        return math.ceil(self.horizon * self.limits.position_bytes / self.limits.shard_bytes)

    def step(self, positions: int, seconds: float) -> None:
        """Counts steps. `seconds` are theirs, without the wait for data."""
        self._positions = MEMORY * self._positions + positions
        self._seconds = MEMORY * self._seconds + seconds

    def downloaded(self, size: int, seconds: float) -> str:
        """Counts a download. Returns a line for the log where the depth has changed."""
        self._downloads.append((size, seconds))
        if len(self._downloads) < self.at_once or not self._seconds:
            return ""
        rate = sum(size for size, _ in self._downloads) / max(sum(seconds for _, seconds in self._downloads), 1e-9)
        speed = self._positions / self._seconds
        needed, given = speed * self.limits.position_bytes, rate * self.at_once
        self._downloads.clear()
        slower = given < needed
        if not self.limits.at_once:
            self._set_at_once(MARGIN * needed / rate, given)
        if not self.limits.ahead:
            lead = 2 * speed * self.limits.shard_bytes / rate  # positions that are read in the time of two downloads
            self.horizon = round(min(self.limits.horizon + lead, max(self.limits.most_horizon, self.limits.horizon)))
        if self._logged[0] == self.at_once and 0.8 <= self._ahead / self._logged[1] <= 1.25:
            return ""
        slower = slower and self._logged[0] == self.at_once
        self._logged = (self.at_once, self._ahead)
        return (
            f"data: {plural(self.at_once, 'shard')} fetched at a time, up to {self._ahead} ahead: steps read "
            f"{needed / 1e6:,.3g} MB/s, and a download gives {rate / 1e6:,.3g} MB/s"
        ) + ("; the store is slower than the steps" if slower else "")

    def _set_at_once(self, wanted: float, given: float) -> None:
        """Up to twice as many as before, unless the last change has given no more bytes per second."""
        most = min(2 * self.at_once, math.ceil(wanted), MOST, self.limits.most_at_once)
        if most > self.at_once and given > GAIN * self._given:
            self._given, self.at_once = given, most


class Prefetcher:
    """Fetches shards that are needed up to `depth.horizon` positions after the current position of training."""

    def __init__(self, tasks: Iterator[FetchTask], depth: Depth, position: int) -> None:
        self._tasks, self._depth, self._position = tasks, depth, position
        self._turn, self._changed = threading.Lock(), threading.Condition()
        self._closed = False
        self._threads = 0
        with self._changed:
            self._start_threads()

    def advance(self, position: int, seconds: float) -> None:
        """Sets the current position, which steps have reached in so many seconds of their own."""
        with self._changed:
            if seconds and position > self._position:
                self._depth.step(position - self._position, seconds)
            self._position = position
            self._changed.notify_all()

    def close(self) -> None:
        """Stops the threads. A fetch in progress is completed."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _start_threads(self) -> None:
        """Daemons, so that a silent server does not keep the process."""
        while self._threads < self._depth.at_once:
            threading.Thread(target=self._run, name="prefetch", daemon=True).start()
            self._threads += 1

    def _run(self) -> None:
        while (fetch := self._take()) is not None:
            begin = monotonic()
            with suppress(UserError, OSError):  # the reader of the shard meets the same error and raises it
                if size := fetch():
                    self._count(size, monotonic() - begin)

    def _take(self) -> Callable[[], int] | None:
        """The next shard to fetch, once it is near. None at the end."""
        with self._turn:  # not `_changed`: training must not wait while the next shard is worked out
            task = next(self._tasks, None)
            if task is None:
                return None
            with self._changed:
                self._changed.wait_for(lambda: self._closed or task[0] <= self._position + self._depth.horizon)
                return None if self._closed else task[1]

    def _count(self, size: int, seconds: float) -> None:
        with self._changed:
            line = self._depth.downloaded(size, seconds)
            self._start_threads()
            self._changed.notify_all()
        if line:
            logger.info(line)
