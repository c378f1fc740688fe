"""The size of tiles that fit into memory, and smaller ones where they did not."""

from __future__ import annotations

import copy
import math
import os
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sr_dist.core import launch_env
from sr_dist.core.errors import UserError

PROBE = 64  # the side of the image, without memory, on which a network's need is counted
SHARE = 0.5  # of the free memory: kernels need some of their own, and other programs too
SMALLEST = 32  # the side of a tile below which nothing is gained
STEP = 16  # sides of automatic tiles are multiples of it
UNKNOWN = 32_000  # bytes per pixel where a network cannot be run without memory: twice what RRDB needs
CGROUP = Path("/sys/fs/cgroup")


def automatic_tile(size: tuple[int, int], need: float, overlap: int, device: torch.device) -> int | None:
    """The side of the largest tile that fits into the free memory; None where the whole image does. `need`: bytes per pixel of
    all images of a batch."""
    pixels = free_bytes(device) * SHARE / need
    if size[0] * size[1] <= pixels:
        return None
    side = math.isqrt(int(pixels)) - 2 * overlap  # a tile sees `overlap` more on each side
    return max(side // STEP * STEP, SMALLEST)


def bytes_per_pixel(network: nn.Module, channels: int) -> float:
    """The memory of a forward pass per LR pixel, counted on tensors without memory."""
    try:
        empty = copy.deepcopy(network).to("meta")
        with torch.no_grad(), _LiveBytes() as live:
            empty(torch.empty(1, channels, PROBE, PROBE, device="meta"))
    except Exception:  # operators without a form for tensors without memory raise errors of many types
        return UNKNOWN
    return max(live.peak, 1) / PROBE**2


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that exist at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._add(value.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, storage._cdata, storage.nbytes())

    def _remove(self, number: int, count: int) -> None:
        self._known.discard(number)
        self.now -= count


def free_bytes(device: torch.device) -> int:
    """The free memory of a GPU, or this rank's share of that of the machine, or of what a container may still use."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # what torch keeps for its next tensors
        return torch.cuda.mem_get_info(device)[0] + unused
    free = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = [int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) << 10]
    with suppress(OSError, ValueError):
        free.append(int((CGROUP / "memory.max").read_text()) - int((CGROUP / "memory.current").read_text()))
    return max(min(free) // launch_env.num_local_ranks(), 1)


def is_out_of_memory(problem: BaseException) -> bool:
    """On a GPU torch has an error of its own; on the CPU it is a RuntimeError like others."""
    texts = ("not enough memory", "can't allocate memory")
    return isinstance(problem, torch.OutOfMemoryError | MemoryError) or (
        isinstance(problem, RuntimeError) and any(text in str(problem) for text in texts)
    )


def with_smaller_tiles(
    enlarge: Callable[[int | None], Tensor], tile: int | None, size: tuple[int, int], note: Callable[[str], None]
) -> tuple[Tensor, int | None]:
    """Calls with this tile, and with smaller ones as long as memory does not suffice: -> the result and the tile."""
    while True:
        try:
            return enlarge(tile), tile
        except Exception as problem:
            if not is_out_of_memory(problem):
                raise
            side = min(tile or max(size), max(size))
        if side <= SMALLEST:  # outside of `except`, so that the traceback no longer holds tensors
            raise UserError(f"tile: even tiles of {side} pixels need more memory than is free")
        tile = max(side // 2 // STEP * STEP, SMALLEST)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        note(f"note: memory does not suffice; tiles of {tile} pixels from here on")
