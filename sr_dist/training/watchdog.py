"""Ends a rank that makes no progress, with its name and a stack dump, instead of holding GPUs in silence."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from sr_dist.core.run_layout import COLLECTIVES

TOUCH_EVERY = 5.0  # seconds between two signs of life on disk
LAST_WORDS = 10.0  # seconds for the message of a rank that hangs


class Watchdog:
    """`beat(activity)` names what the rank does next. After `timeout` seconds without a beat the process exits with 1.

    Every rank touches a file in the run folder, so that the message can list when each rank was last seen. These files are for
    the message only: nothing that happens to them, or to stderr, keeps the process from going on or from ending.
    """

    def __init__(self, folder: Path, rank: int, timeout: float | None) -> None:
        self.folder, self.rank, self.timeout = folder / ".alive", rank, timeout
        self._last_beat, self._activity, self._touched = time.monotonic(), "starting", 0.0
        self._ended = threading.Event()
        if timeout:
            with suppress(OSError):
                self.folder.mkdir(parents=True, exist_ok=True)
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self, activity: str) -> None:
        self._last_beat, self._activity = time.monotonic(), activity
        if self.timeout and self._last_beat - self._touched > TOUCH_EVERY:
            self._touched = self._last_beat
            with suppress(OSError):
                (self.folder / f"rank-{self.rank:03d}").write_text(f"{activity}\n")

    def close(self) -> None:
        self._ended.set()

    def _watch(self) -> None:
        assert self.timeout
        woken = time.monotonic()
        period = min(self.timeout / 4, 5.0)
        while not self._ended.wait(period):
            now = time.monotonic()
            if now - woken > 2 * period + 1:  # this thread stood still too: the process was suspended, or the machine slept
                self._last_beat += now - woken - period
            woken = now
            if time.monotonic() - self._last_beat > self.timeout:
                self._give_up()

    def _give_up(self) -> None:
        try:
            # A write to a full pipe or to a lost disk raises nothing and never returns: then this timer, which needs neither a
            # lock nor a file, ends the process.
            faulthandler.dump_traceback_later(LAST_WORDS, exit=True, file=open(os.devnull, "w"))  # noqa: SIM115
            for say in (self._say_who, faulthandler.dump_traceback, self._write_stacks):
                with suppress(Exception):
                    say()
        finally:
            os._exit(1)

    def _say_who(self) -> None:
        lines = [f"rank {self.rank} made no progress for {self.timeout:g} s: {self._activity}"]
        for sign in sorted(self.folder.glob("rank-*")):
            with suppress(OSError):
                age = time.time() - sign.stat().st_mtime
                lines.append(f"  {sign.name}: last seen {age:.0f} s ago: {sign.read_text().strip()}")
        if dumps := sorted(str(path) for path in self.folder.parent.glob(f"{COLLECTIVES}*")):
            lines.append(f"  the last collectives of NCCL: {', '.join(dumps)} (read them with torchfrtrace)")
        print("\n".join(lines), file=sys.stderr, flush=True)

    def _write_stacks(self) -> None:
        with open(self.folder.parent / f"hang-rank-{self.rank:03d}.txt", "w") as file:
            faulthandler.dump_traceback(file=file)
