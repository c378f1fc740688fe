"""Stochastic gradient descent, with momentum if the recipe states it."""

from __future__ import annotations

import torch

from sr_dist.recipe.sections import Optimizer


def build(parameters: list[torch.nn.Parameter], settings: Optimizer, fused: bool) -> torch.optim.Optimizer:
    rate, momentum, decay = settings.learning_rate, settings.momentum, settings.weight_decay
    return torch.optim.SGD(parameters, rate, momentum, weight_decay=decay, fused=fused)


def states_per_weight(settings: Optimizer) -> int:
    return int(settings.momentum > 0)
