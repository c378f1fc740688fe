"""The exponential moving average of a network's weights, in fp32. Validation, samples and export use it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from sr_dist.training.engine import Engine


class Ema:
    """Averages the weights that a rank keeps. `network` is a bare, uncompiled copy that `gather` fills with whole averages.

    The decay rises as (1 + n) / (10 + n) to its value, so that short runs forget their start.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        """`network` has not been given to a backend yet."""
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay, self.updates = decay, 0
        self.averages: list[Tensor] = list(self.network.parameters())

    def follow(self, engine: Engine) -> None:
        """Averages the weights of this engine from now on. All ranks must call."""
        self.engine = engine
        weights = engine.local_weights()
        if any(value.shape != average.shape for value, average in zip(weights, self.averages, strict=True)):
            self.averages = [value.detach().clone() for value in weights]

    @torch.no_grad()
    def update(self) -> None:
        """After each step. A skipped one leaves the averages as they are."""
        self.updates += 1
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        weights = [weight * (self.engine.skipped == 0).float()] * len(self.averages)  # decided on the device
        torch._foreach_lerp_(self.averages, [value.detach() for value in self.engine.local_weights()], weights)
        for average, buffer in zip(self.network.buffers(), self.engine.bare.buffers(), strict=True):
            average.copy_(buffer)  # running statistics are averages already

    @torch.no_grad()
    def gather(self) -> nn.Module:
        """The network with the averages in it. All ranks must call."""
        for parameter, average in zip(self.network.parameters(), self.engine.whole(self.averages), strict=True):
            if parameter is not average:
                parameter.copy_(average)
        return self.network

    def load(self, weights: dict[str, Tensor], updates: int) -> None:
        """Loads saved averages. Overwrites the engine's own weights, which must be loaded afterwards. All ranks must call."""
        self.network.load_state_dict(weights)
        self.updates = updates
        if any(average is not parameter for average, parameter in zip(self.averages, self.network.parameters(), strict=True)):
            self.engine.load_weights(weights)
            self.averages = [value.detach().clone() for value in self.engine.local_weights()]
