"""Run by the tests of faults: two ranks, and one fails alone: the first, or the second. Each prints the errors that it meets."""

from __future__ import annotations

import os

from sr_dist.core import ranks
from sr_dist.core.errors import UserError

PROBLEMS = (UserError("name: no"), ZeroDivisionError("no"))


def throw(problem: Exception) -> None:
    raise problem


if __name__ == "__main__":
    accelerator = ranks.open_accelerator("no")

    def fail_on_first(problem: Exception) -> None:
        ranks.on_first(lambda: throw(problem))

    def fail_on_second(problem: Exception) -> None:
        with ranks.failing_together():
            if ranks.rank() == 1:
                raise problem

    for fail in (fail_on_first, fail_on_second):
        for problem in PROBLEMS:
            try:
                fail(problem)
            except Exception as caught:
                everywhere = getattr(caught, "on_all_ranks", False)
                line = f"{fail.__name__}, rank {ranks.rank()}: {type(caught).__name__}: {caught}, {everywhere}\n"
                os.write(1, line.encode())  # at once, because both ranks write to the same pipe
            ranks.barrier()
    ranks.destroy_group()
