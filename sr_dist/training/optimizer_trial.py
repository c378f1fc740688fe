"""Tries an optimizer of the user's own on a few numbers, before training: can its state be saved, and does ZeRO suit it?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from sr_dist.core import plugins
from sr_dist.core.errors import UserError, first_line
from sr_dist.core.plugins import PACKAGES
from sr_dist.recipe.sections import Optimizer
from sr_dist.training.optimizer_state import Groups, build_optimizer, is_cut, optimizer_state

SHAPES = ((2, 3), (2, 2, 1, 2), (4,))
STEPS = 3  # some statistics enter an update only at the second step
RANKS = 2
CLOSE = 1e-4  # of the largest change: rounding is less


def try_out(settings: Optimizer, device: torch.device, zero: bool, on_host: bool = False) -> None:
    """Refuses an optimizer with which a run could not continue, or whose updates would be others under ZeRO."""
    if "." not in settings.name:
        return
    path = plugins.locate(PACKAGES["optimizer"], settings.name, "optimizer.name")[1]
    device = torch.device("cpu") if on_host else device
    try:
        network = few_weights(device)
        optimizer = build_optimizer(network, settings, on_host)
        groups = Groups(optimizer)
        for gradients in few_gradients(device):
            step_with(optimizer, list(network.parameters()), gradients)
    except UserError:
        raise
    except Exception as problem:  # one for convolutions only, say; without ZeRO the training itself shows it
        if zero:
            raise UserError(failed(path, problem)) from None
        return
    optimizer_state(network, optimizer)
    groups.changed()
    if zero:
        check_shapes(path, optimizer, list(network.parameters()))
        compare(path, list(network.parameters()), lambda weights: build_optimizer(weights, settings, on_host), device)


def few_weights(device: torch.device) -> nn.ParameterList:
    draw = torch.Generator().manual_seed(0)
    return nn.ParameterList(nn.Parameter(torch.randn(shape, generator=draw).to(device)) for shape in SHAPES)


def few_gradients(device: torch.device) -> Iterator[list[Tensor]]:
    draw = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        yield [torch.randn(shape, generator=draw).to(device) for shape in SHAPES]


def step_with(optimizer: torch.optim.Optimizer, parameters: list[Tensor], gradients: list[Tensor]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    optimizer.step()


def failed(path: Path, problem: Exception) -> str:
    return (
        f"optimizer.name: '{path}' ended in an error when it was tried with a few weights, cut into vectors as ZeRO cuts them "
        f"({first_line(problem)}); train in one process or under DDP"
    )


# ------------------------------------------------------------------------------------------------------------- as under ZeRO


def check_shapes(path: Path, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
    """The state has a number for each weight, or one number that is the same for all parameters."""
    states = [optimizer.state.get(parameter, {}) for parameter in parameters]
    for parameter, state in zip(parameters, states, strict=True):
        for slot, value in state.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                raise UserError(
                    f"optimizer.name: '{path}' keeps '{slot}' of another shape than the parameter ({list(value.shape)} for "
                    f"{list(parameter.shape)}), which ZeRO cannot cut; train in one process or under DDP"
                )
    common = [{slot: "cut" if is_cut(value) else value for slot, value in state.items()} for state in states]
    if any(repr(one) != repr(common[0]) for one in common):
        raise UserError(
            f"optimizer.name: '{path}' keeps other state for some parameters than for others, which ZeRO joins; train in one "
            f"process or under DDP"
        )


def compare(path: Path, whole: list[Tensor], build: Callable[[nn.Module], torch.optim.Optimizer], device: torch.device) -> None:
    """Takes the same steps as two ranks would under ZeRO, and compares the weights."""
    try:
        ranks = [Rank(rank, build, device) for rank in range(RANKS)]
        for gradients in few_gradients(device):
            for rank in ranks:
                rank.step(gradients)
    except Exception as problem:
        raise UserError(failed(path, problem)) from None
    check_shapes(path, ranks[0].optimizer, ranks[0].parts)
    now, begun = (torch.cat(ranks[0].grouped(tensors)) for tensors in (whole, list(few_weights(device))))
    parts = zip(*(rank.parts for rank in ranks), strict=True)
    joined = torch.cat([part.detach() for both in parts for part in both])
    if not (joined - now).abs().max() <= CLOSE * (now - begun).abs().max():
        raise UserError(
            f"optimizer.name: '{path}' computes other updates where a rank has a part of the parameters as one long vector, as "
            f"under ZeRO: it uses their shapes or norms, or sums over them; train in one process or under DDP"
        )


class Rank:
    """One of two ranks, with its half of every group as one vector, as DeepSpeed passes it: group by group."""

    def __init__(self, rank: int, build: Callable[[nn.Module], torch.optim.Optimizer], device: torch.device) -> None:
        network = few_weights(device)
        self._rank, self.optimizer = rank, build(network)
        order = {id(parameter): number for number, parameter in enumerate(network.parameters())}
        groups = [group["params"] for group in self.optimizer.param_groups]
        self._numbers = [[order[id(parameter)] for parameter in group] for group in groups if group]
        self.parts = [nn.Parameter(self._part(flat)) for flat in self.grouped(list(network.parameters()))]
        self._groups = [group for group in self.optimizer.param_groups if group["params"]]
        for group, part in zip(self._groups, self.parts, strict=True):
            group["params"] = [part]
        if isinstance(self.optimizer, torch.optim.Adagrad):  # DeepSpeed too: its state begins where it is built
            self.optimizer = torch.optim.Adagrad(self.parts, **self.optimizer.defaults)
            self._groups = self.optimizer.param_groups

    def grouped(self, tensors: list[Tensor]) -> list[Tensor]:
        """Tensors like the parameters, each group as one vector."""
        return [torch.cat([tensors[number].detach().flatten() for number in group]) for group in self._numbers]

    def _part(self, flat: Tensor) -> Tensor:
        return flat.chunk(RANKS)[self._rank].clone()

    def step(self, gradients: list[Tensor]) -> None:
        for group, part, flat in zip(self._groups, self.parts, self.grouped(gradients), strict=True):
            with alone(group, part, self._groups):
                step_with(self.optimizer, [part], [self._part(flat)])


@contextmanager
def alone(group: dict, part: Tensor, groups: list[dict]) -> Iterator[None]:
    """DeepSpeed steps once for each group, and under stage 3 the others are empty then."""
    for other in groups:
        other["params"] = [part] if other is group else []
    yield
