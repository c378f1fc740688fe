"""A rank that makes no progress ends the job, with its name and a stack dump, instead of holding GPUs in silence."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from pathlib import Path

TOUCH_EVERY = 5.0  # seconds between two signs of life on disk


class Watchdog:
    """`beat(what)` says what the rank does next; after `patience` seconds without a beat the process ends with 1.

    Every rank leaves signs of life in the run folder, so that the message can name who was left behind.
    """

    def __init__(self, folder: Path, rank: int, patience: float | None) -> None:
        self.folder, self.rank, self.patience = folder / ".alive", rank, patience
        self._since, self._doing, self._touched = time.monotonic(), "starting", 0.0
        self._ended = threading.Event()
        if patience:
            self.folder.mkdir(parents=True, exist_ok=True)
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self, doing: str) -> None:
        self._since, self._doing = time.monotonic(), doing
        if self.patience and self._since - self._touched > TOUCH_EVERY:
            self._touched = self._since
            (self.folder / f"rank-{self.rank:03d}").write_text(f"{doing}\n")

    def close(self) -> None:
        self._ended.set()

    def _watch(self) -> None:
        assert self.patience
        while not self._ended.wait(min(self.patience / 4, 5.0)):
            if time.monotonic() - self._since > self.patience:
                self._give_up()

    def _give_up(self) -> None:
        print(f"rank {self.rank} made no progress for {self.patience:g} s: {self._doing}", file=sys.stderr)
        for sign in sorted(self.folder.glob("rank-*")):
            age = time.time() - sign.stat().st_mtime
            print(f"  {sign.name}: last seen {age:.0f} s ago: {sign.read_text().strip()}", file=sys.stderr)
        faulthandler.dump_traceback(file=sys.stderr)
        with open(self.folder.parent / f"hang-rank-{self.rank:03d}.txt", "w") as file:
            faulthandler.dump_traceback(file=file)
        os._exit(1)
