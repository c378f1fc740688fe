"""A training that ends without a word at a moment of its first rollback: killed_in_rollback.py MOMENT WORD ..."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from sr_dist import train
from sr_dist.training import loop, rollback


def main(argv: Sequence[str] | None = None) -> int:
    moment, *words = sys.argv[1:] if argv is None else argv
    removing, finish, advance = shutil.rmtree, rollback.finish, loop.advance
    if moment == "before the removal":
        rollback.finish = lambda folder: None if not rollback.rollbacks_of(folder) else os._exit(9)

    def remove(folder: Any) -> None:
        removing(folder)
        os._exit(9)

    def finish_partly(folder: Any) -> None:
        shutil.rmtree = remove
        finish(folder)
        shutil.rmtree = removing

    def step(run: Any, number: int, batches: Any) -> Any:
        if run.state["rollbacks"] and number == run.state["rollbacks"][0]["to"] + 5:
            run.writer.wait()
            os._exit(9)
        return advance(run, number, batches)

    if moment == "in the removal":
        rollback.finish = finish_partly
    if moment == "after the rollback":
        loop.advance = step
    return train.main(words)


if __name__ == "__main__":
    sys.exit(main())
