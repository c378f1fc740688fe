"""The way from loading processes to their rank: memory that both see, made once and used again and again. Making it anew for
every micro-batch, and sending what opens it, takes as long as decoding a few images.

Each process has slots of its own and fills one after the other; only a slot's number travels:

    images t of a process  ->  its slot t mod slots, in which images t + slots will be written over them
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from sr_dist.core.errors import UserError, first_line


class Slot(NamedTuple):
    """Where in the ring the images of a micro-batch lie."""

    worker: int
    number: int
    images: int


class Ring:
    """`shapes` are those of the images (H, W, C) that a micro-batch has `count` of each at most."""

    def __init__(self, workers: int, slots: int, count: int, shapes: Sequence[tuple[int, ...]]) -> None:
        sizes = [(workers, slots, count, *shape) for shape in shapes]
        try:
            self._rooms = [_shared(size) for size in sizes]
        except RuntimeError as problem:
            needed = math.ceil(sum(map(math.prod, sizes)) / 2**20)
            raise UserError(
                f"data.workers: the images on their way from {workers} loading processes need {needed:,} MiB of shared memory "
                f"on every rank ({first_line(problem)}); a container gets more by --shm-size, fewer processes need less"
            ) from None
        self._slots = slots
        self._filled = 0  # by this process

    def next(self, count: int) -> Slot:
        """In a loading process: the slot whose turn it is."""
        worker = get_worker_info()
        assert worker is not None
        self._filled += 1
        return Slot(worker.id, self._filled % self._slots, count)

    def images(self, slot: Slot) -> list[Tensor]:
        """(count, H, W, C) uint8 each."""
        return [room[slot.worker, slot.number, : slot.images] for room in self._rooms]


def _shared(shape: tuple[int, ...]) -> Tensor:
    """All of it is taken here: where there is too little, it fails now. `share_memory_` would copy besides."""
    storage = torch.UntypedStorage._new_shared(math.prod(shape), device="cpu")
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)
