"""Run by the tests of faults: two ranks, and one fails alone: the first, or the second. Each prints the error that it meets."""

from __future__ import annotations

import sys

from sr_dist.core import ranks
from sr_dist.core.errors import UserError

PROBLEMS = {"mistake": UserError("name: no"), "ours": ZeroDivisionError("no")}

if __name__ == "__main__":
    accelerator = ranks.open_accelerator("no")

    def fail() -> None:
        raise PROBLEMS[sys.argv[1]]

    try:
        if sys.argv[1] in PROBLEMS:
            ranks.on_first(fail)
        with ranks.failing_together():
            if ranks.rank() == 1:
                raise UserError("data: no")
    except Exception as problem:
        print(f"rank {ranks.rank()}: {type(problem).__name__}: {problem}", flush=True)
    ranks.barrier()
    ranks.destroy_group()
