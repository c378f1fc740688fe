"""The exponential moving average of a network's weights, kept in fp32: what is validated, pictured and exported."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Ema:
    """A bare, uncompiled copy. The decay rises as (1 + n) / (10 + n) to its value, so that short runs forget their start."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        self.updates += 1
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), weight)
        for average, buffer in zip(self.network.buffers(), network.buffers(), strict=True):
            average.copy_(buffer)  # running statistics are averages already

    def load(self, weights: dict[str, Tensor], updates: int) -> None:
        self.network.load_state_dict(weights)
        self.updates = updates
