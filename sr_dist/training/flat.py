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


class Joined:
    """`joined` of the same tensors, again and again. It remembers their views, because making 702 of them takes a millisecond."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = list(tensors)
        self._views: list[Tensor] = []
        self._addresses: list[int] = []

    def __call__(self) -> Tensor:
        """A copy of the numbers as they are now. Backends may put a tensor elsewhere (`parameter.data = ...`)."""
        addresses = [tensor.data_ptr() for tensor in self._tensors]
        if addresses != self._addresses:
            if not all(map(is_dense, self._tensors)):
                return joined(self._tensors)
            self._views = [tensor.detach().as_strided((tensor.numel(),), (1,)) for tensor in self._tensors]
            self._addresses = addresses
        return torch.cat(self._views)


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
        groups = by_type(tensors)
        self._now = [Joined(group) for group in groups]
        self._flat = [now().to(dtype or group[0].dtype) for now, group in zip(self._now, groups, strict=True)]
        values: dict[int, Tensor] = {}
        for flat, group in zip(self._flat, groups, strict=True):
            values |= zip(map(id, group), pieces(flat, group), strict=True)
        self.tensors = [values[id(tensor)] for tensor in tensors]

    @torch.no_grad()
    def update(self, share: Tensor | float) -> None:
        """Moves to the tensors as they are now by this share of the way. One that only the device knows is a tensor."""
        for flat, now in zip(self._flat, self._now, strict=True):
            flat.lerp_(now().to(flat.dtype), share.to(flat) if isinstance(share, Tensor) else share)

    @torch.no_grad()
    def restart(self) -> None:
        """Takes the tensors as they are now."""
        for flat, now in zip(self._flat, self._now, strict=True):
            flat.copy_(now())
