"""The exponential moving average of a network's weights, in fp32. Validation, samples and export use it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from sr_dist.training.buffers import saved_buffers
from sr_dist.training.engine import Engine
from sr_dist.training.flat import by_type, joined, pieces


class Ema:
    """Averages the weights that a rank keeps. `network` is a bare, uncompiled copy that `gather` fills with whole averages.

    The decay rises as (1 + n) / (10 + n) to its value, so that short runs forget their start.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        """`network` has not been given to a backend yet."""
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay, self.updates = decay, 0

    def follow(self, engine: Engine) -> None:
        """Averages the weights of this engine from now on, in their memory layout. All ranks must call."""
        self.engine = engine
        own = engine.local_weights()
        self._weights = by_type(own)
        self._flat = [joined(weights) for weights in self._weights]  # one tensor, so that a step takes a few kernels
        averages: dict[int, Tensor] = {}
        for flat, weights in zip(self._flat, self._weights, strict=True):
            averages |= zip(map(id, weights), pieces(flat, weights), strict=True)
        self.averages = [averages[id(weight)] for weight in own]
        parameters = list(self.network.parameters())
        self._partitioned = any(p.shape != average.shape for p, average in zip(parameters, self.averages, strict=True))
        if not self._partitioned:
            for parameter, average in zip(parameters, self.averages, strict=True):
                parameter.data = average
        self._buffers = list(saved_buffers(self.network).values()), list(saved_buffers(engine.bare).values())

    @torch.no_grad()
    def update(self) -> None:
        """After each step. A skipped one leaves the averages as they are."""
        self.updates += 1
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        taken = weight * (self.engine.skipped == 0).float()  # decided on the device
        for flat, weights in zip(self._flat, self._weights, strict=True):
            flat.lerp_(joined(weights), taken.to(flat))
        if self._buffers[0]:
            torch._foreach_copy_(*self._buffers)  # running statistics are averages already

    @torch.no_grad()
    def gather(self) -> nn.Module:
        """The network with the averages in it. All ranks must call."""
        if self._partitioned:
            for parameter, average in zip(self.network.parameters(), self.engine.whole(self.averages), strict=True):
                parameter.copy_(average)
        return self.network

    def load(self, weights: dict[str, Tensor], updates: int) -> None:
        """Loads saved averages. Overwrites the engine's own weights, which must be loaded afterwards. All ranks must call."""
        self.network.load_state_dict(weights)
        self.updates = updates
        if self._partitioned:
            self.engine.load_weights(weights)
            for flat, own in zip(self._flat, self._weights, strict=True):
                flat.copy_(joined(own))
