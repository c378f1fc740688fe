"""Optimizers, and their state as tensors by name: `body.0.weight/exp_avg`. What a recipe states is not state."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sr_dist.errors import UserError
from sr_dist.sections import Optimizer


def build_optimizer(network: nn.Module, settings: Optimizer, on_host: bool = False) -> torch.optim.Optimizer:
    """Frozen parameters never enter. Fused: one kernel, and updates can be left out without asking the device."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    if not parameters:
        raise UserError("init.freeze: its patterns freeze every parameter; there is nothing to train")
    if settings.name == "sgd":
        return torch.optim.SGD(
            parameters, settings.learning_rate, settings.momentum, weight_decay=settings.weight_decay, fused=not on_host
        )
    kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
    return kind(parameters, settings.learning_rate, settings.betas, weight_decay=settings.weight_decay, fused=not on_host)


def slots(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    found = {}
    for name, parameter in network.named_parameters():
        for slot, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                found[f"{name}/{slot}"] = value if isinstance(value, Tensor) else torch.tensor(value)
    return found


def load_slots(network: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        name, slot = key.rsplit("/", 1)
        by_name.setdefault(name, {})[slot] = value
    for name, parameter in network.named_parameters():
        if name in by_name:  # a fused optimizer keeps its count of steps on the device too
            optimizer.state[parameter] = {slot: value.to(parameter.device, copy=True) for slot, value in by_name[name].items()}
