"""Sends what W&B wrote offline, while the run goes on: `wandb sync` in a process of its own, one at a time, each with a limit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

COMMAND = (sys.executable, "-m", "wandb", "sync")
AGAIN = "--include-synced"  # a part that has grown since
LIMIT, LAST = 600.0, 60.0  # seconds after which a process is ended, and that training waits for the last one


class BackgroundSync:
    """`wandb sync` of a run's offline parts every so many steps. Nothing that happens to it ends training."""

    def __init__(self, every: int, parts: Path, current: Path, info: Callable[[str], None]) -> None:
        self._every, self._current, self._info = every, current, info
        self._earlier = sorted(path for path in parts.glob("offline-run-*") if path != current)  # of processes before this one
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as this object
        self._process: subprocess.Popen[bytes] | None = None
        self._tick: int | None = None
        self._begun = 0.0
        self._failed = False

    def row(self, step: int) -> None:
        """Starts a sync if one is due and the one before has ended."""
        tick = step // self._every
        if self._tick is None:
            self._tick = tick
        if self._is_working() and time.monotonic() - self._begun > LIMIT:
            self._stop(0)
            self._note(f"no end after {LIMIT:.0f} s")
        if tick > self._tick and not self._is_working():
            self._tick = tick
            self._begin()

    def close(self) -> None:
        """Sends the rest, within LAST seconds."""
        self._stop(LAST)
        for _ in range(2 if self._earlier else 1):
            self._begin()
            self._stop(LAST)
        self._output.close()

    def _begin(self) -> None:
        """Earlier parts are complete and go first, once; the current one goes whole each time."""
        words = [str(path) for path in self._earlier] or [AGAIN, str(self._current)]
        self._earlier = []
        self._output.seek(0)
        self._output.truncate()
        self._begun = time.monotonic()
        try:
            self._process = subprocess.Popen(
                [*COMMAND, *words], stdin=subprocess.DEVNULL, stdout=self._output, stderr=subprocess.STDOUT,
                start_new_session=True, env=_environment(),
            )  # fmt: skip
        except OSError as problem:
            self._note(problem.strerror or str(problem))

    def _is_working(self) -> bool:
        if self._process is None:
            return False
        code = self._process.poll()
        if code is not None:
            self._process = None
            if code:
                self._note(self._last_line() or f"exit code {code}")
        return code is None

    def _stop(self, seconds: float) -> None:
        """Waits for the process, and ends it after so many seconds."""
        if self._process is None:
            return
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
        self._is_working()

    def _last_line(self) -> str:
        self._output.seek(0)
        lines = self._output.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip()[:200] if lines else ""

    def _note(self, reason: str) -> None:
        """Once: a node without internet says the same each time."""
        if not self._failed:
            self._failed = True
            self._info(f"wandb sync failed ({reason}); it is tried again every {self._every} steps, training goes on")


def _environment() -> dict[str, str]:
    """That of training, without the service and the mode of its own W&B."""
    own = ("WANDB_SERVICE", "WANDB_MODE", "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_DIR")
    return {name: value for name, value in os.environ.items() if name not in own}
