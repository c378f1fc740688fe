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

ALLOCATIONS = ("out of memory", "_STATUS_ALLOC_FAILED", "can't allocate memory")  # of CUDA and NCCL, cuBLAS and cuDNN, the CPU
LargestUsers = Callable[[Recipe, int], str]  # of a number of ranks


class OutOfMemory(RuntimeError):
    """Names the largest users of memory, and the key to change."""


def is_full(problem: BaseException) -> bool:
    """Whether the memory of the device was full. torch has an error of its own only for its own allocations."""
    return isinstance(problem, RuntimeError) and any(name in str(problem) for name in ALLOCATIONS)


def out_of_memory(run: Run, caught: Exception, largest_users: LargestUsers) -> OutOfMemory:
    """The error of this rank that replaces torch's."""
    lines = [f"out of memory in step {run.step + 1}: {first_line(caught)}"]
    with suppress(Exception):  # nothing that fails here hides that memory was full
        if snapshot := write_snapshot(run):
            lines.append(f"its blocks: {snapshot}; open it in https://pytorch.org/memory_viz")
    return OutOfMemory("\n".join([*lines, *_advice(run.recipe, largest_users)]))


def out_of_memory_at_start(recipe: Recipe, caught: BaseException, largest_users: LargestUsers) -> OutOfMemory:
    """The same before there is a run."""
    line = f"out of memory before the first step: {first_line(caught)}"
    return OutOfMemory("\n".join([line, *_advice(recipe, largest_users)]))


def _advice(recipe: Recipe, largest_users: LargestUsers) -> list[str]:
    with suppress(Exception):
        return largest_users(recipe, ranks.size()).splitlines()
    return []


def write_snapshot(run: Run) -> Path | None:
    """The blocks of this rank's GPU, in the run folder. None without a GPU."""
    if run.device.type != "cuda":
        return None
    path = run.recipe.folder / f"oom-rank-{ranks.rank():03d}.pickle"
    torch.cuda.memory._dump_snapshot(str(path))
    return path
