"""Sends tensors of any types to a device together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ALIGNED = 16  # bytes: a view of another type must begin at a multiple of its size


def send_together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """One asynchronous copy through one block of pinned memory. The tensors may change as soon as it returns."""
    begins, size = [], 0
    for tensor in tensors:
        begins.append(size)
        size += -(-tensor.nbytes // ALIGNED) * ALIGNED
    buffer = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    for place, tensor in zip(_views(buffer, begins, tensors), tensors, strict=True):
        place.copy_(tensor)
    return _views(buffer.to(device, non_blocking=True), begins, tensors)


def _views(buffer: Tensor, begins: Sequence[int], like: Sequence[Tensor]) -> list[Tensor]:
    return [
        buffer[begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for begin, tensor in zip(begins, like, strict=True)
    ]
