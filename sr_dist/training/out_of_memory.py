"""What a run says when the memory of its GPU is full."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from sr_dist.core import ranks
from sr_dist.core.errors import first_line
from sr_dist.recipe.sections import Recipe
from sr_dist.training.run import Run


class OutOfMemory(RuntimeError):
    """Names the largest users of memory, and the key to change."""


def out_of_memory(run: Run, caught: Exception, largest_users: Callable[[Recipe, int], str]) -> OutOfMemory:
    """The error of this rank that replaces torch's. Nothing that fails in making it hides that memory was full."""
    text = f"out of memory in step {run.step + 1}: {first_line(caught)}"
    with suppress(Exception):
        if snapshot := write_snapshot(run):
            text += f"\nwhat was in it: {snapshot}; open it in https://pytorch.org/memory_viz"
    with suppress(Exception):
        text += f"\n{largest_users(run.recipe, ranks.size())}"
    return OutOfMemory(text.rstrip())


def write_snapshot(run: Run) -> Path | None:
    """The blocks of this rank's GPU, in the run folder. None without a GPU."""
    if run.device.type != "cuda":
        return None
    path = run.recipe.folder / f"oom-rank-{ranks.rank():03d}.pickle"
    torch.cuda.memory._dump_snapshot(str(path))
    return path
