"""The exponential moving average of a network's weights, in fp32. Validation, samples and export use it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from sr_dist.training.buffers import SavedBuffers
from sr_dist.training.engine import Engine
from sr_dist.training.flat import FlatAverage


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
        self._average = FlatAverage(engine.local_weights())
        self.averages = self._average.tensors
        parameters = list(self.network.parameters())
        self._partitioned = any(p.shape != average.shape for p, average in zip(parameters, self.averages, strict=True))
        if not self._partitioned:
            for parameter, average in zip(parameters, self.averages, strict=True):
                parameter.data = average
        self._buffers, self._live_buffers = SavedBuffers(self.network), SavedBuffers(engine.bare)

    @torch.no_grad()
    def update(self) -> None:
        """After each step. A skipped one leaves the averages as they are."""
        self.updates += 1
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        self._average.update(weight * (self.engine.skipped == 0).float())  # decided on the device
        if live := self._live_buffers.collect():
            torch._foreach_copy_(self._buffers.collect(), live)  # running statistics are averages already

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
            self._average.restart()
