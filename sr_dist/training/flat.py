"""Many tensors as one: a few kernels do what would take one for each tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def by_type(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """The tensors in groups of one type of numbers."""
    types = dict.fromkeys(tensor.dtype for tensor in tensors)
    return [[tensor for tensor in tensors if tensor.dtype == each] for each in types]


def is_dense(tensor: Tensor) -> bool:
    """Whether the numbers lie one after the other in memory, in any order of the dimensions (as in channels_last). A part of a
    larger tensor and an expanded one are not dense."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """A copy of all numbers, (n,): of a dense tensor in the order of its memory, of others in that of their indices."""
    return torch.cat([t.detach().as_strided((t.numel(),), (1,)) if is_dense(t) else t.detach().reshape(-1) for t in tensors])


def pieces(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of `flat` with the shapes of those tensors, and with their memory layouts where they are dense."""
    parts = flat.split([tensor.numel() for tensor in like])
    return [
        part.as_strided(tensor.shape, tensor.stride()) if is_dense(tensor) else part.view(tensor.shape)
        for part, tensor in zip(parts, like, strict=True)
    ]


class FlatAverage:
    """A running average of tensors that change in place, such as weights. `tensors` are its values."""

    def __init__(self, tensors: Sequence[Tensor], dtype: torch.dtype | None = None) -> None:
        """It has the type of the tensors unless it is given one."""
        self._groups = by_type(tensors)
        self._flat = [joined(group).to(dtype or group[0].dtype) for group in self._groups]
        values: dict[int, Tensor] = {}
        for flat, group in zip(self._flat, self._groups, strict=True):
            values |= zip(map(id, group), pieces(flat, group), strict=True)
        self.tensors = [values[id(tensor)] for tensor in tensors]

    @torch.no_grad()
    def update(self, share: Tensor | float) -> None:
        """Moves to the tensors as they are now by this share of the way. One that only the device knows is a tensor."""
        for flat, group in zip(self._flat, self._groups, strict=True):
            flat.lerp_(joined(group).to(flat.dtype), share.to(flat) if isinstance(share, Tensor) else share)

    @torch.no_grad()
    def restart(self) -> None:
        """Takes the tensors as they are now."""
        for flat, group in zip(self._flat, self._groups, strict=True):
            flat.copy_(joined(group))
