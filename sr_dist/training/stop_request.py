"""SIGTERM, SIGINT, SIGHUP, SIGUSR1 or a STOP file: all ranks finish the current step, save and exit together."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import FrameType

from sr_dist.core import ranks
from sr_dist.core.run_layout import STOP

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)  # SIGHUP: the terminal was closed
SAME = 0.5  # seconds within which two signals are one Ctrl-C: `timeout` and shells pass on what the whole group gets
LOOK_EVERY = 1.0  # seconds


class StopRequest:
    """Checked once per step on every rank. The vote is answered one step later, so no step waits for it."""

    def __init__(self, folder: Path) -> None:
        self.reason: str | None = None
        self._noted, self._looked, self._exists = 0.0, -LOOK_EVERY, False
        self.file = folder / STOP
        self._vote = ranks.DelayedAny()
        heeded = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # nohup ignores SIGHUP
        self._handlers = {number: signal.signal(number, self._note) for number in heeded}

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and self.reason == "SIGINT" and now - self._noted > SAME:
            os._exit(130)  # the second Ctrl-C ends at once
        self.reason, self._noted = signal.Signals(number).name, now

    def agreed(self) -> bool:
        """True on all ranks, in the same step, once any of them received a request. All ranks must call."""
        if self.reason is None and self._file_exists():
            self.reason = STOP
        return self._vote.submit(self.reason is not None)

    def agreed_at_start(self) -> bool:
        """The same before the first step, when there is no step to overlap the vote with. All ranks must call."""
        self.agreed()
        return self._vote.result()

    def pending(self) -> bool:
        """Whether this rank received a request; for work that ranks can abandon by agreement."""
        return self.reason is not None or self._file_exists()

    def _file_exists(self) -> bool:
        """The first rank looks once a second: on a network file system a look takes longer than a vote."""
        now = time.monotonic()
        if ranks.is_first() and now - self._looked >= LOOK_EVERY:
            self._looked, self._exists = now, self.file.exists()
        return self._exists

    def close(self) -> None:
        self._vote.result()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
