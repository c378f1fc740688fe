"""Buffers of a network in training, such as running means: a step that is skipped leaves no trace in them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Buffers:
    """The buffers as the last good step left them. They change in forward passes, before anybody knows whether the step is good.

    All decisions are made on the device: a step takes a few small kernels more, whatever the number of buffers is.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self.remember()
        device = self._good[0].device if self._good else None
        self.refused = torch.zeros((), device=device)
        """Steps in a row after which buffers were not finite although the gradients were."""

    def _by_type(self) -> list[list[Tensor]]:
        values = list(self._network.buffers())
        types = dict.fromkeys(value.dtype for value in values)
        return [[value for value in values if value.dtype == each] for each in types]

    def remember(self) -> None:
        """Takes the buffers as they are for good: after loading."""
        self._good = [_flat(values) for values in self._by_type()]
        self._bad = self._good

    def settle(self, skipped: Tensor) -> None:
        """After each step: brings the buffers back if the step was skipped (1, else 0) or has left a value that is not finite."""
        if not self._good:
            return
        live = self._by_type()
        now = [_flat(values) for values in live]
        broken = ~torch.stack([torch.isfinite(values).all() for values in now]).all()
        refused = broken & (skipped == 0)
        self.refused = (self.refused + 1) * refused
        self._bad = [torch.where(refused, new, bad) for new, bad in zip(now, self._bad, strict=True)]
        self._good = [torch.where(broken | (skipped > 0), good, new) for new, good in zip(now, self._good, strict=True)]
        for values, good in zip(live, self._good, strict=True):
            torch._foreach_copy_(values, _pieces(good, values))

    def broken(self) -> list[str]:
        """The names of the buffers that were not finite when a step was last refused. Waits for the device."""
        finite: dict[int, bool] = {}
        for values, bad in zip(self._by_type(), self._bad, strict=True):
            pieces = zip(values, _pieces(bad, values), strict=True)
            finite |= {id(value): bool(torch.isfinite(piece).all()) for value, piece in pieces}
        return [name for name, value in self._network.named_buffers() if not finite[id(value)]]


def _flat(values: list[Tensor]) -> Tensor:
    return torch.cat([value.detach().reshape(-1) for value in values])


def _pieces(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
    pieces = flat.split([value.numel() for value in like])
    return [piece.view(value.shape) for piece, value in zip(pieces, like, strict=True)]
