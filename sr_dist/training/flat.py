"""Many tensors as one: a few kernels do what would take one for each tensor."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, cat


def by_type(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """The tensors in groups of one type of numbers."""
    types = dict.fromkeys(tensor.dtype for tensor in tensors)
    return [[tensor for tensor in tensors if tensor.dtype == each] for each in types]


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """A copy of all numbers, (n,), in the order in which they lie in memory."""
    return cat([tensor.detach().as_strided((tensor.numel(),), (1,)) for tensor in tensors])


def pieces(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of `flat` with the shapes and memory layouts of those tensors."""
    parts = flat.split([tensor.numel() for tensor in like])
    return [part.as_strided(tensor.shape, tensor.stride()) for part, tensor in zip(parts, like, strict=True)]
