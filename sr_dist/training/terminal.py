"""What a person at the terminal sees: lines, and below them a bar with the time left. Without a terminal, lines alone."""

from __future__ import annotations

import logging
import sys

from tqdm import tqdm


class Lines(logging.Handler):
    """Prints above the bar, if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


class Bar:
    """Steps done, steps to do, and how long that will take. It appears with the first step."""

    def __init__(self, name: str, steps: int) -> None:
        self._name, self._steps = name, steps
        self._bar: tqdm | None = None

    def advance(self, step: int) -> None:
        if not sys.stdout.isatty():
            return
        if self._bar is None:
            self._bar = tqdm(
                desc=self._name, total=self._steps, initial=step, unit="step", file=sys.stdout, dynamic_ncols=True, leave=False
            )
        self._bar.update(step - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
