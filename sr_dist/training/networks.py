"""Builds the objective and the networks of a recipe, with their starting weights, as they are trained."""

from __future__ import annotations

import fnmatch
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch

from sr_dist.core import launch_env, plugins, ranks
from sr_dist.core.contracts import Degradation
from sr_dist.core.errors import UserError
from sr_dist.core.plugins import PACKAGES
from sr_dist.models import trained
from sr_dist.recipe.sections import Part, Recipe
from sr_dist.training.batch_norm import synchronize
from sr_dist.training.buffers import saved_buffers


def build_objective(recipe: Recipe) -> Any:
    """The recipe's `Objective`, which is also an `nn.Module`."""
    module, options = plugins.resolve(PACKAGES["objective"], recipe.objective.name, recipe.objective.options, "objective")
    return laid_out(module.Objective(options), recipe)  # its frozen networks see the images of the trained ones


def in_precision(objective: Any, precision: str) -> Any:
    """Converts the frozen weights that autocast would convert in every call: it keeps only what it made of trained ones. A module
    says by `follows_autocast` that nothing in it leaves autocast."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    followers = [module for module in objective.modules() if getattr(module, "follows_autocast", False)]
    for layer in (layer for follower in followers for layer in follower.modules()):
        if dtype and isinstance(layer, nn.Conv2d | nn.Linear):
            layer.to(dtype)
    return objective


def build_degradation(recipe: Recipe) -> Degradation:
    part = recipe.data.degradation
    module, options = plugins.resolve(PACKAGES["degradation"], part.name, part.options, "data.degradation")
    return module.build(options, recipe.scale)


def build_network(part: Part, kind: str, scale: int) -> nn.Module:
    section = {"name": part.name, **part.options}
    return trained.build_classifier(section) if kind == "classifier" else trained.build(PACKAGES[kind], section, scale, kind)


def phase_network(recipe: Recipe, phase: str, resuming: bool, notes: list[str]) -> nn.Module:
    """A network with its starting weights. Parameters that init.freeze names require no gradient. Adds lines for the log."""
    part: Part = getattr(recipe, phase)
    if resuming and "weights" in part.options:
        part = part.with_options(weights="none")  # the checkpoint has them
    network = build_network(part, phase, recipe.scale)
    start = getattr(recipe.init, phase, None)
    if start and not resuming:
        section = {"name": part.name, **part.options}
        notes.append(trained.load_starting_weights(network, section, start, phase, f"init.{phase}", recipe.init.partial))
    if not start and not resuming and (note := from_scratch(part, phase)):
        notes.append(note)
    if phase != "discriminator" and recipe.init.freeze:
        freeze(network, recipe.init.freeze)
    return network


def from_scratch(part: Part, phase: str) -> str | None:
    """What the part's file says about new weights, or None."""
    module, options = plugins.resolve(PACKAGES[phase], part.name, part.options, phase)
    return module.from_scratch(options) if hasattr(module, "from_scratch") else None


def prepared(network: nn.Module, recipe: Recipe, phase: str, device: torch.device) -> nn.Module:
    """The network as it is trained: memory layout, synchronized batch normalization, recomputed activations, compiled."""
    if ranks.size() > 1 and recipe.batch_norm == "global":
        network = synchronize(network)
    network = laid_out(network.to(device), recipe)
    if phase != "discriminator" and recipe.checkpointing:
        recompute_activations(network, recipe.checkpointing)
    if recipe.compile and recipe.health.enabled:  # which asks a compiled discriminator for two gradients of one forward pass
        functorch.donated_buffer = False
    for module in repeated_blocks(network) if recipe.compile == "body" else [network] if recipe.compile else ():
        module.compile()  # in place, so that parameters keep their names
    return network


def laid_out(network: nn.Module, recipe: Recipe) -> nn.Module:
    """In the memory layout of the recipe. ZeRO keeps weights in flat, contiguous buffers."""
    if recipe.channels_last and not launch_env.under_deepspeed():
        return network.to(memory_format=torch.channels_last)
    return network


def repeated_blocks(network: nn.Module) -> list[nn.Module]:
    """The largest modules of which there are several with the same tensors, such as the blocks of a body: their code is compiled
    once. The whole network where nothing repeats."""
    kinds = {
        module: (type(module), tuple((name, tensor.shape) for name, tensor in module.named_parameters()))
        for module in network.modules()
        if next(module.children(), None) is not None and next(module.parameters(), None) is not None
    }
    counts = Counter(kinds.values())

    def largest(module: nn.Module) -> Iterator[nn.Module]:
        if module in kinds and counts[kinds[module]] > 1:
            yield module
        else:
            for child in module.children():
                yield from largest(child)

    return list(largest(network)) or [network]


def recompute_activations(network: nn.Module, patterns: tuple[str, ...]) -> None:
    """The matching modules keep only their inputs and run again in the backward pass."""
    names = dict(network.named_modules())
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            examples = ", ".join(list(names)[1:6])
            raise UserError(f"checkpointing: no module of the network fits '{pattern}'; there are {examples}, ...")
    for name, module in names.items():
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            run = run_twice_as_once if saved_buffers(module) else run_twice
            module.forward = functools.partial(run, module.forward)


def run_twice(forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    """Runs `forward` now, keeping only its inputs, and again in the backward pass."""
    from torch.utils.checkpoint import checkpoint  # only where a recipe asks for it

    return checkpoint(forward, *inputs, use_reentrant=False, **options)


def run_twice_as_once(forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    """The same for a method of a module with buffers. A compiled graph changes them once by itself, and takes no contexts."""
    if not torch.compiler.is_compiling():
        options["context_fn"] = functools.partial(as_before, forward.__self__)  # type: ignore[attr-defined]
    return run_twice(forward, *inputs, **options)


def as_before(module: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Around a forward pass and around the pass that runs again. The second one sees the module's buffers as the first one did,
    and leaves them as they are: else running statistics would follow every image twice."""
    before = copies(module)

    @contextmanager
    def again() -> Iterator[None]:
        after = copies(module)
        set_buffers(module, before)
        try:
            yield
        finally:
            set_buffers(module, after)

    return nullcontext(), again()


def copies(module: nn.Module) -> list[Tensor]:
    return [buffer.clone() for buffer in saved_buffers(module).values()]


@torch.no_grad()
def set_buffers(module: nn.Module, values: list[Tensor]) -> None:
    for buffer, value in zip(saved_buffers(module).values(), values, strict=True):
        buffer.copy_(value)


def freeze(network: nn.Module, patterns: tuple[str, ...]) -> None:
    names = [name for name, _ in network.named_parameters()]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise UserError(f"init.freeze: no parameter fits '{pattern}'; names are like '{names[0]}', '{names[-1]}'")
    for name, parameter in network.named_parameters():
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)
