"""Ends a rank that makes no progress, with its name and a stack dump, instead of holding GPUs in silence."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from pathlib import Path

TOUCH_EVERY = 5.0  # seconds between two signs of life on disk


class Watchdog:
    """`beat(activity)` names what the rank does next. After `timeout` seconds without a beat the process exits with 1.

    Every rank touches a file in the run folder, so that the message can list when each rank was last seen.
    """

    def __init__(self, folder: Path, rank: int, timeout: float | None) -> None:
        self.folder, self.rank, self.timeout = folder / ".alive", rank, timeout
        self._last_beat, self._activity, self._touched = time.monotonic(), "starting", 0.0
        self._ended = threading.Event()
        if timeout:
            self.folder.mkdir(parents=True, exist_ok=True)
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self, activity: str) -> None:
        self._last_beat, self._activity = time.monotonic(), activity
        if self.timeout and self._last_beat - self._touched > TOUCH_EVERY:
            self._touched = self._last_beat
            (self.folder / f"rank-{self.rank:03d}").write_text(f"{activity}\n")

    def close(self) -> None:
        self._ended.set()

    def _watch(self) -> None:
        assert self.timeout
        while not self._ended.wait(min(self.timeout / 4, 5.0)):
            if time.monotonic() - self._last_beat > self.timeout:
                self._give_up()

    def _give_up(self) -> None:
        print(f"rank {self.rank} made no progress for {self.timeout:g} s: {self._activity}", file=sys.stderr)
        for sign in sorted(self.folder.glob("rank-*")):
            age = time.time() - sign.stat().st_mtime
            print(f"  {sign.name}: last seen {age:.0f} s ago: {sign.read_text().strip()}", file=sys.stderr)
        faulthandler.dump_traceback(file=sys.stderr)
        with open(self.folder.parent / f"hang-rank-{self.rank:03d}.txt", "w") as file:
            faulthandler.dump_traceback(file=file)
        os._exit(1)
