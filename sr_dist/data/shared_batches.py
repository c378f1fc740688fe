"""Shared memory through which workers hand image batches to their rank.

It is allocated once and reused. Allocating memory for every micro-batch and sending its file descriptor takes as long as
decoding several images. Each worker fills its own slots in turn, and only the slot's number is sent:

    batch t of a worker  ->  its slot t mod slots, which batch t + slots overwrites
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import get_worker_info

from sr_dist.core.errors import UserError, first_line


class Slot(NamedTuple):
    """The place of a micro-batch in the shared memory."""

    worker: int
    number: int
    images: int


class SharedBatches:
    """Slots for micro-batches of up to `count` images; `shapes` are (H, W, C) of HR and, where it is stored, of LR."""

    def __init__(self, workers: int, slots: int, count: int, shapes: Sequence[tuple[int, ...]]) -> None:
        sizes = [(workers, slots, count, *shape) for shape in shapes]
        try:
            self._buffers = [_shared(size) for size in sizes]
        except RuntimeError as error:
            needed = math.ceil(sum(map(math.prod, sizes)) / 2**20)
            raise UserError(
                f"data.workers: {workers} workers need {needed:,} MiB of shared memory for image batches on every rank "
                f"({first_line(error)}); start the container with a larger --shm-size, or use fewer workers"
            ) from None
        self._slots = slots
        self._filled = 0  # by this worker

    def next_slot(self, images: int) -> Slot:
        """The slot that this worker fills next. Only workers call this."""
        worker = get_worker_info()
        assert worker is not None
        self._filled += 1
        return Slot(worker.id, self._filled % self._slots, images)

    def arrays(self, slot: Slot) -> list[np.ndarray]:
        """(images, H, W, C) uint8 each, without a copy."""
        return [buffer[slot.worker, slot.number, : slot.images].numpy() for buffer in self._buffers]


def _shared(shape: tuple[int, ...]) -> torch.Tensor:
    """Allocates all of the memory now, so that a lack of it shows at once. `share_memory_` would copy as well."""
    storage = torch.UntypedStorage._new_shared(math.prod(shape), device="cpu")
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)
