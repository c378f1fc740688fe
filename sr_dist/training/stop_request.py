"""SIGTERM, SIGINT, SIGUSR1 or a STOP file: every rank finishes the step in hand, saves and leaves together."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import FrameType

from sr_dist.core import ranks

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Asked once per step on every rank. The vote is answered a step later, so no step waits for it."""

    def __init__(self, folder: Path) -> None:
        self.reason: str | None = None
        self.file = folder / "STOP"
        self._vote = ranks.Vote()
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.reason == "SIGINT":
            os._exit(130)  # the second Ctrl-C: now
        self.reason = signal.Signals(number).name

    def agreed(self) -> bool:
        """True on all ranks, in the same step, once any of them was asked to stop. All ranks must call."""
        if ranks.is_first() and self.reason is None and self.file.exists():
            self.reason = "STOP"
        return self._vote.ask(self.reason is not None)

    def pending(self) -> bool:
        """Whether this rank knows of a wish to stop; for work that a rank can abandon by agreement."""
        return self.reason is not None or (ranks.is_first() and self.file.exists())

    def close(self) -> None:
        self._vote.answer()
        for number, handler in self._before.items():
            signal.signal(number, handler)
