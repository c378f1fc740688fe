"""Buffers of a network in training, such as running means: a step that is skipped leaves no trace in them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sr_dist.core.errors import UserError
from sr_dist.training.batch_norm import GlobalBatchNorm
from sr_dist.training.flat import Joined, by_type, is_dense, pieces


def saved_buffers(network: nn.Module) -> dict[str, Tensor]:
    """The buffers that are part of a checkpoint. The others are constants, which every network computes for itself."""
    saved = network.state_dict(keep_vars=True).keys()
    return {name: buffer for name, buffer in network.named_buffers() if name in saved}


def equal_on_all_ranks(network: nn.Module) -> bool:
    """Whether all ranks compute the same buffers, so that they need not be broadcast in every forward pass: synchronized
    statistics."""
    synchronized = [module for module in network.modules() if isinstance(module, GlobalBatchNorm)]
    own = {id(buffer) for module in synchronized for buffer in module.buffers(recurse=False)}
    return own >= set(map(id, saved_buffers(network).values()))


class SavedBuffers:
    """The saved buffers of a network, always as the same tensors. A forward pass may put others there (`self.mean = ...`)."""

    def __init__(self, network: nn.Module) -> None:
        self.names = list(saved_buffers(network))
        places = [name.rpartition(".") for name in self.names]
        self._places = [(network.get_submodule(module), name) for module, _, name in places]
        self._own: list[Tensor] = [getattr(module, name) for module, name in self._places]
        for i, (module, name) in enumerate(self._places):
            if not is_dense(self._own[i]):  # such as an expanded one, whose numbers cannot be written one by one
                self._own[i] = self._own[i].contiguous()
                setattr(module, name, self._own[i])

    @torch.no_grad()
    def collect(self) -> list[Tensor]:
        """The buffers, with the values of those that were put in their places since."""
        for full, (module, name), own in zip(self.names, self._places, self._own, strict=True):
            now = getattr(module, name)
            if now is own:
                continue
            if now is None or now.shape != own.shape:
                shape = None if now is None else tuple(now.shape)
                raise UserError(
                    f"buffer '{full}': a forward pass has changed its shape from {tuple(own.shape)} to {shape}; one "
                    f"that is saved keeps its shape (persistent=False: it is not saved)"
                )
            own.copy_(now)
            setattr(module, name, own)
        return self._own


class Buffers:
    """The buffers as the last good step left them. They change in forward passes, before anybody knows whether the step is good.

    All decisions are made on the device: a step takes a few small kernels more, whatever the number of buffers is.
    """

    def __init__(self, network: nn.Module) -> None:
        self._saved = SavedBuffers(network)
        own = self._saved.collect()
        self._names = dict(zip(map(id, own), self._saved.names, strict=True))
        self._live = by_type(own)
        self._now = [Joined(values) for values in self._live]
        self.remember()
        self.refused = torch.zeros((), device=next(network.parameters()).device)
        """Steps in a row after which buffers were not finite although the gradients were."""

    def remember(self) -> None:
        """Takes the buffers as they are for good: after loading."""
        self._saved.collect()
        self._good = [now() for now in self._now]
        self._bad = self._good

    def settle(self, skipped: Tensor) -> None:
        """After each step: brings the buffers back if the step was skipped (1, else 0) or has left a value that is not finite."""
        if not self._live:
            return
        self._saved.collect()
        now = [joined() for joined in self._now]
        broken = ~torch.stack([torch.isfinite(values).all() for values in now]).all()
        refused = broken & (skipped == 0)
        self.refused = (self.refused + 1) * refused
        self._bad = [torch.where(refused, new, bad) for new, bad in zip(now, self._bad, strict=True)]
        self._good = [torch.where(broken | (skipped > 0), good, new) for new, good in zip(now, self._good, strict=True)]
        for values, good in zip(self._live, self._good, strict=True):
            torch._foreach_copy_(values, pieces(good, values))

    def broken(self) -> list[str]:
        """The names of the buffers that were not finite when a step was last refused. Waits for the device."""
        return [
            self._names[id(value)]
            for values, bad in zip(self._live, self._bad, strict=True)
            for value, piece in zip(values, pieces(bad, values), strict=True)
            if not torch.isfinite(piece).all()
        ]
