"""Builds optimizers, and names their state by parameter: `body.0.weight/exp_avg`. A Python number is named with its kind:
`body.0.weight/count:int`, and what an optimizer changes in its first group `param_groups/0/total:float`."""

from __future__ import annotations

import copy
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from sr_dist.core import plugins
from sr_dist.core.errors import UserError, with_article
from sr_dist.core.plugins import PACKAGES
from sr_dist.recipe.sections import Optimizer

GROUPS = "param_groups"
KINDS = {"float": torch.float64, "int": torch.int64, "bool": torch.bool}
Value = Tensor | float | int | bool


def build_optimizer(network: nn.Module, settings: Optimizer, on_host: bool = False) -> torch.optim.Optimizer:
    """An optimizer of the parameters that are not frozen.

    It is fused except on the host: one kernel, and an update can be skipped without a device synchronization.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    if not parameters:
        raise UserError("init.freeze: its patterns freeze every parameter; there is nothing to train")
    name, path = plugins.locate(PACKAGES["optimizer"], settings.name, "optimizer.name")
    module = plugins.need(plugins.import_part(name, path, "optimizer.name"), "build", path, "optimizer.name")
    optimizer = module.build(parameters, settings, not on_host)
    if not all(hasattr(optimizer, name) for name in ("step", "state", "param_groups")):
        raise UserError(
            f"optimizer.name: '{path}': build returned a {type(optimizer).__name__}, not an optimizer; it returns a "
            f"torch.optim.Optimizer of the parameters that it is given"
        )
    return optimizer


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
    count = getattr(plugins.import_part(name, path, "optimizer.name"), "states_per_weight", None)
    if not callable(count):
        raise UserError(
            f"optimizer.name: '{path}' has no states_per_weight(settings), which returns how many numbers the optimizer keeps "
            f"per weight; the table of memory needs it"
        )
    return count(settings)


def optimizer_state(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, parameter in network.named_parameters():
        for slot, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                state |= named(f"{name}/{slot}", value, optimizer)
    check_owners(optimizer, list(network.parameters()))
    return state


def load_optimizer_state(network: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    slots = by_parameter(state)
    for name, parameter in network.named_parameters():
        if name in slots:  # a fused optimizer keeps its step count on the device too
            optimizer.state[parameter] = {
                slot: _laid_out_as(parameter, value) if isinstance(value, Tensor) else value
                for slot, value in slots[name].items()
            }


def by_parameter(state: dict[str, Tensor]) -> dict[str, dict[str, Value]]:
    """Parameter -> slot -> value."""
    slots: dict[str, dict[str, Value]] = {}
    for key, tensor in state.items():
        name, slot = key.rsplit("/", 1)
        slot, value = _unnamed(slot, tensor)
        slots.setdefault(name, {})[slot] = value
    return slots


def is_cut(value: Value) -> TypeGuard[Tensor]:
    """Whether ZeRO's ranks have parts of the value. A single number, such as the count of steps, is the same on all."""
    return isinstance(value, Tensor) and value.ndim > 0


def named(name: str, value: Any, optimizer: torch.optim.Optimizer, where: str = "its state") -> dict[str, Tensor]:
    """The value as an entry of a checkpoint. Python numbers stay exact, and are Python numbers again when they are loaded."""
    if isinstance(value, Tensor):
        return {name: value}
    kind = next((kind for kind, of in (("bool", bool), ("int", int), ("float", float)) if isinstance(value, of)), None)
    if kind is None or (kind == "int" and abs(value) >= 2**63):
        raise UserError(
            f"optimizer.name: {type(optimizer).__name__} keeps '{name.rsplit('/', 1)[1]}', {with_article(type(value).__name__)}, "
            f"in {where}; a checkpoint holds tensors and numbers (float, bool, int of 64 bits), so a run could not continue"
        )
    return {f"{name}:{kind}": torch.tensor(value, dtype=KINDS[kind])}


def _unnamed(slot: str, tensor: Tensor) -> tuple[str, Value]:
    before, _, kind = slot.rpartition(":")
    return (before, tensor.item()) if before and kind in KINDS else (slot, tensor)


def check_owners(optimizer: torch.optim.Optimizer, parameters: list[Tensor]) -> None:
    """Refuses state that belongs to no parameter: it would be lost when a run continues."""
    known = set(map(id, parameters))
    for owner in optimizer.state:
        if id(owner) not in known:
            text = repr(owner) if isinstance(owner, str) else type(owner).__name__
            raise UserError(
                f"optimizer.name: {type(optimizer).__name__} keeps state that belongs to no parameter ({text}); keep it in "
                f"state[parameter] or in param_groups, so that a run can continue"
            )


class Groups:
    """What an optimizer itself changes in its `param_groups`, such as a count of steps. The rate is the loop's."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        """Of an optimizer that has not taken a step."""
        self._optimizer = optimizer
        self._begun = [copy.deepcopy(_own(group)) for group in optimizer.param_groups]

    def changed(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        for number, (group, begun) in enumerate(zip(self._optimizer.param_groups, self._begun, strict=True)):
            for key, value in _own(group).items():
                if key not in begun or not _same(value, begun[key]):
                    state |= named(f"{GROUPS}/{number}/{key}", value, self._optimizer, GROUPS)
        return state

    def load(self, state: dict[str, Tensor]) -> None:
        for name, values in by_parameter(state).items():
            owner, _, number = name.partition("/")
            if owner == GROUPS and number:
                group = self._optimizer.param_groups[int(number)]
                group |= {key: _copy_like(value, group.get(key)) for key, value in values.items()}


def _own(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in ("params", "lr")}


def _same(a: Any, b: Any) -> bool:
    """Whether they are equal. NaN is equal to NaN."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.equal(b)
    return type(a) is type(b) and repr(a) == repr(b)


def _copy_like(value: Value, before: Any) -> Value:
    """A copy of a tensor, on the device where the one before it is."""
    if not isinstance(value, Tensor):
        return value
    return value.to(before.device if isinstance(before, Tensor) else value.device, copy=True)


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """A copy on the parameter's device, in its memory layout: channels_last is not stored, and fused kernels pair the values of a
    weight and of its state in the order of the memory."""
    if value.shape != parameter.shape:
        return value.to(parameter.device, copy=True)
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
