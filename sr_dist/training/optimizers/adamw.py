"""AdamW: Adam with decoupled weight decay (Loshchilov and Hutter)."""

from __future__ import annotations

import torch

from sr_dist.recipe.sections import Optimizer


def build(parameters: list[torch.nn.Parameter], settings: Optimizer, fused: bool) -> torch.optim.Optimizer:
    rate, betas, decay = settings.learning_rate, settings.betas, settings.weight_decay
    return torch.optim.AdamW(parameters, rate, betas, weight_decay=decay, fused=fused)


def states_per_weight(settings: Optimizer) -> int:
    return 2
