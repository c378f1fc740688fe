"""Tries an optimizer of the user's own on a few numbers, before training: can its state be saved, does it go on as before with
the state that was saved, and does ZeRO suit it?"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sr_dist.core import plugins
from sr_dist.core.errors import UserError, first_line
from sr_dist.core.plugins import PACKAGES
from sr_dist.recipe.sections import Optimizer
from sr_dist.training.optimizer_state import Groups, build_optimizer, is_cut, load_optimizer_state, optimizer_state

SHAPES = ((2, 3), (2, 2, 1, 2), (4,))
STEPS = 3  # some statistics enter an update only at the second step
STEPS_AFTER = 12  # of an optimizer with the state that was saved; some act only in every fifth step
RANKS = 2
CLOSE = 1e-4  # of the largest change: rounding is less


def try_out(settings: Optimizer, network: nn.Module, device: torch.device, zero: bool, on_host: bool = False) -> None:
    """Refuses an optimizer that cannot train the network, with which a run could not continue, or whose updates would be others
    under ZeRO."""
    if "." not in settings.name:
        return
    path = plugins.locate(PACKAGES["optimizer"], settings.name, "optimizer.name")[1]
    build = partial(build_optimizer, settings=settings, on_host=on_host)
    with random_numbers_restored(device):
        device = torch.device("cpu") if on_host else device
        try:
            trial = Trial(few_weights(device), build)
            trial.take(few_gradients(device))
            check_resume(path, trial, Trial(few_weights(device), build))
        except UserError:
            raise
        except Exception as problem:  # one for convolutions only, say
            check_shapes_of(path, network, build)
            if zero:
                raise UserError(failed(path, problem)) from None
            return
        if zero:
            whole = Trial(few_weights(device), build)
            whole.take(few_gradients(device))
            check_shapes(path, whole.optimizer, whole.weights)
            compare(path, whole.weights, build, device)


class Trial:
    """A few weights with an optimizer."""

    def __init__(self, network: nn.Module, build: Callable[[nn.Module], torch.optim.Optimizer]) -> None:
        self.network, self.optimizer = network, build(network)
        self.weights: list[Tensor] = list(network.parameters())
        self._groups = Groups(self.optimizer)

    def take(self, steps: Iterable[list[Tensor]]) -> None:
        """Every step begins with the same random numbers, as in training."""
        for number, gradients in enumerate(steps):
            seed_all(number)
            step_with(self.optimizer, self.weights, gradients)

    def joined(self) -> Tensor:
        """The weights as one vector, a copy."""
        return torch.cat([weight.detach().flatten() for weight in self.weights])

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint has of the optimizer."""
        return optimizer_state(self.network, self.optimizer) | self._groups.changed()

    def load(self, other: Trial) -> None:
        """As when a run continues: from the weights and from `state()`."""
        self.network.load_state_dict(other.network.state_dict())
        state = other.state()
        load_optimizer_state(self.network, self.optimizer, state)
        self._groups.load(state)


@contextmanager
def random_numbers_restored(device: torch.device) -> Iterator[None]:
    """What is drawn afterwards is what would have been drawn without the trial."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def seed_all(number: int) -> None:
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number)


def check_resume(path: Path, trial: Trial, fresh: Trial) -> None:
    fresh.load(trial)
    if not goes_on_as(trial, fresh):
        raise UserError(
            f"optimizer.name: '{path}' keeps state outside of optimizer.state, such as in its own attributes or in a "
            f"generator of random numbers, which a resume would lose; put it there as tensors or numbers"
        )


def goes_on_as(trial: Trial, fresh: Trial) -> bool:
    """Whether both get the same weights. One after the other takes the steps, because a file may keep numbers in its module."""
    begun, gradients = trial.joined(), list(gradients_of(trial.weights, STEPS_AFTER, seed=2))
    trial.take(gradients)
    try:
        fresh.take(gradients)
    except Exception:  # it misses what it kept elsewhere
        return False
    # a number on the host comes back on the device, which may round another way
    rounding = 0.0 if begun.device.type == "cpu" else CLOSE * float((trial.joined() - begun).nan_to_num().abs().max())
    return trial.joined().allclose(fresh.joined(), rtol=0, atol=rounding, equal_nan=True)


def check_shapes_of(path: Path, network: nn.Module, build: Callable[[nn.Module], torch.optim.Optimizer]) -> None:
    """Tries the optimizer with the network's smallest parameter of each number of dimensions: does it work, and continue?"""
    trained = sorted((p for p in network.parameters() if p.requires_grad), key=torch.numel, reverse=True)
    smallest = {parameter.ndim: parameter for parameter in trained}.values()

    def begin() -> Trial:
        return Trial(nn.ParameterList(nn.Parameter(parameter.detach().clone()) for parameter in smallest), build)

    try:
        trial = begin()
        trial.take(gradients_of(trial.weights, STEPS))
        check_resume(path, trial, begin())
    except UserError:
        raise
    except Exception as problem:
        raise UserError(
            f"optimizer.name: '{path}' ended in an error when it was tried with a few weights ({first_line(problem)}); its step "
            f"is called without arguments, after each weight has got its gradient"
        ) from None


def few_weights(device: torch.device) -> nn.ParameterList:
    draw = torch.Generator().manual_seed(0)
    return nn.ParameterList(nn.Parameter(torch.randn(shape, generator=draw).to(device)) for shape in SHAPES)


def few_gradients(device: torch.device) -> Iterator[list[Tensor]]:
    return gradients_of(few_weights(device), STEPS)


def gradients_of(weights: Iterable[Tensor], steps: int, seed: int = 1) -> Iterator[list[Tensor]]:
    weights, draw = list(weights), torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield [torch.randn(weight.shape, generator=draw).to(weight) for weight in weights]


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
