"""Run by the tests of faults: two ranks, and the first fails alone. Each prints the error that it meets."""

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
        ranks.on_first(fail)
    except Exception as problem:
        print(f"rank {ranks.rank()}: {type(problem).__name__}: {problem}", flush=True)
    ranks.barrier()
    ranks.destroy_group()
