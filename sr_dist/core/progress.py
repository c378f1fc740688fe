"""The progress of long work on stderr: a bar on a terminal, elsewhere a line every PRINT_EVERY seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, TypeVar

PRINT_EVERY = 10.0  # seconds between lines; work that takes less prints none
BAR_AFTER = 0.5  # seconds until a bar appears
Result = TypeVar("Result")


class Progress:
    """How much of `total` is done, how fast, and the time left. `done` was done before, and does not count for the speed."""

    def __init__(
        self, total: int, unit: str = "image", done: int = 0, *, about: str = "", shown: bool = True, lines: bool = True
    ) -> None:
        """Without `lines`, which are for work that prints nothing else, only on a terminal."""
        self._total, self._unit, self._about = total, unit, about
        self._done = self._before = done
        self._start = self._printed = time.monotonic()
        shown = shown and sys.stderr is not None and total > done
        self._bar: Any = None
        self._lines = shown and lines
        if shown and sys.stderr.isatty():
            from tqdm import tqdm  # spares its import in worker processes and batch jobs

            self._bar = tqdm(
                desc=about or None, total=total, initial=done, unit=unit, smoothing=0.1, leave=False, dynamic_ncols=True,
                delay=BAR_AFTER,
            )  # fmt: skip

    def advance(self, count: int = 1) -> None:
        self.reach(self._done + count)

    def reach(self, done: int) -> None:
        """Moves to a number of images, if there are not already more."""
        count, self._done = max(done - self._done, 0), max(done, self._done)
        if self._bar is not None:
            self._bar.update(count)
        elif self._lines and time.monotonic() - self._printed >= PRINT_EVERY:
            self._printed = time.monotonic()
            with suppress(OSError, ValueError):  # stderr was closed
                print(self.text(), file=sys.stderr, flush=True)

    def text(self) -> str:
        """Such as `validating: 12 of 100 images, 3.1 images/s, 0:28 left`."""
        rate = (self._done - self._before) / max(time.monotonic() - self._start, 1e-9)
        left = int((self._total - self._done) / rate) if rate else 0
        time_left = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}" if left >= 3600 else f"{left // 60}:{left % 60:02d}"
        speed = three_digits(rate)
        text = f"{self._done} of {self._total} {self._unit}s, {speed} {self._unit}s/s, {time_left} left"
        return f"{self._about}: {text}" if self._about else text

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def three_digits(rate: float) -> str:
    """A speed: slow ones have as many digits as fast ones."""
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"


def print_line(text: str) -> None:
    """Prints a line to stdout, above the bars of this process, if there are any."""
    if "tqdm" in sys.modules:
        sys.modules["tqdm"].tqdm.write(text, file=sys.stdout)
    else:
        print(text)
    sys.stdout.flush()


def with_progress(steps: Iterable[tuple[int, Result]], total: int, unit: str = "image") -> Iterator[Result]:
    """Yields the results of (amount, result)."""
    with Progress(total, unit) as progress:
        for amount, result in steps:
            progress.advance(amount)
            yield result
