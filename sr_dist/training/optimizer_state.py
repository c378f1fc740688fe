"""Builds optimizers, and names their state by parameter: `body.0.weight/exp_avg`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sr_dist.core import plugins
from sr_dist.core.errors import UserError
from sr_dist.core.plugins import PACKAGES
from sr_dist.recipe.sections import Optimizer


def build_optimizer(network: nn.Module, settings: Optimizer, on_host: bool = False) -> torch.optim.Optimizer:
    """An optimizer of the parameters that are not frozen.

    It is fused except on the host: one kernel, and an update can be skipped without a device synchronization.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    if not parameters:
        raise UserError("init.freeze: its patterns freeze every parameter; there is nothing to train")
    name, path = plugins.locate(PACKAGES["optimizer"], settings.name, "optimizer.name")
    module = plugins.need(plugins.import_part(name, path, "optimizer.name"), "build", path, "optimizer.name")
    return module.build(parameters, settings, not on_host)


def begin_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Gives SGD's momentum its zeros. Its fused kernel leaves it as uninitialised memory where the first update is skipped."""
    if not isinstance(optimizer, torch.optim.SGD):
        return
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))


def takes_flag(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it leaves the update out itself where a flag on the device says so, as torch's fused optimizers do."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def states_per_weight(settings: Optimizer) -> int:
    """How many values the optimizer keeps per weight."""
    name, path = plugins.locate(PACKAGES["optimizer"], settings.name, "optimizer.name")
    return plugins.import_part(name, path, "optimizer.name").states_per_weight(settings)


def optimizer_state(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = {}
    for name, parameter in network.named_parameters():
        for slot, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                state[f"{name}/{slot}"] = value if isinstance(value, Tensor) else torch.tensor(value)
    return state


def load_optimizer_state(network: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        name, slot = key.rsplit("/", 1)
        by_name.setdefault(name, {})[slot] = value
    for name, parameter in network.named_parameters():
        if name in by_name:  # a fused optimizer keeps its step count on the device too
            optimizer.state[parameter] = {slot: _laid_out_as(parameter, value) for slot, value in by_name[name].items()}


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """A copy on the parameter's device, in its memory layout: channels_last is not stored, and fused kernels pair the values of a
    weight and of its state in the order of the memory."""
    if value.shape != parameter.shape:
        return value.to(parameter.device, copy=True)
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
