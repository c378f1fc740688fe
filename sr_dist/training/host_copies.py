"""Copies of tensors on the host, for checkpoints.

A device sends thousands of small tensors one after the other, and its host waits for each. So tensors of one type are joined on
the device, in parts of at most PART bytes, and each part is one asynchronous copy into pinned memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from sr_dist.training.flat import by_type, joined, pieces

PART = 2**26  # bytes that a device holds twice for a moment


@torch.no_grad()
def on_host(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies with the same numbers and shapes, which training will not change. Waits for each device once."""
    copies: dict[str, Tensor] = {}
    for device in dict.fromkeys(tensor.device for tensor in named.values()):
        own = {name: tensor.detach() for name, tensor in named.items() if tensor.device == device}
        if device.type == "cpu":  # nothing waits, and new memory for a large buffer costs more than its numbers
            copies |= {name: tensor.clone() for name, tensor in own.items()}
        else:
            copies |= grouped(own, pinned=True)
            torch.get_device_module(device).synchronize()
    return {name: copies[name] for name in named}


def grouped(named: Mapping[str, Tensor], pinned: bool) -> dict[str, Tensor]:
    """The same of tensors of one device; asynchronous into pinned memory."""
    copies: dict[str, Tensor] = {}
    for group in by_type(list(named.values())):
        names = [name for name, tensor in named.items() if tensor.dtype == group[0].dtype]
        buffer = torch.empty(sum(tensor.numel() for tensor in group), dtype=group[0].dtype, pin_memory=pinned)
        first = 0
        for part in _parts(group):
            numbers = joined(part)
            buffer[first : first + len(numbers)].copy_(numbers, non_blocking=True)
            first += len(numbers)
        copies |= zip(names, pieces(buffer, group), strict=True)
    return copies


def _parts(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in parts of at most PART bytes, or of one tensor."""
    part: list[Tensor] = []
    for tensor in tensors:
        if part and sum(one.nbytes for one in part) + tensor.nbytes > PART:
            yield part
            part = []
        part.append(tensor)
    yield part
