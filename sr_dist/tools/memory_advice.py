"""What a run that is out of memory should change: its largest users of memory, and the key that costs least."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress

from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm

from sr_dist.core import launch_env
from sr_dist.core.errors import UserError
from sr_dist.recipe import checks
from sr_dist.recipe.sections import Recipe
from sr_dist.tools.memory import COLUMNS, activations, backend_row, held, mebibytes, sizes
from sr_dist.tools.step_inputs import objective_and_networks, quiet, without_published_weights
from sr_dist.training.networks import in_precision, repeated_blocks

WORDS = {
    "optimizer": "states of the optimizers",
    "ema": "averaged weights (EMA)",
    "content": "networks of the losses",
    "buffers": "exchange between ranks",
}
MOST = 3


def largest_users(stated: Recipe, num_ranks: int) -> str:
    """The table and the advice, for a rank of this launch. Estimates, on tensors without numbers."""
    recipe = without_published_weights(stated)
    images = -(-recipe.data.batch // (num_ranks * recipe.accumulate))
    with quiet():
        users = _state(recipe, num_ranks)
        if recipe.data.crop:
            users[f"activations of {images} x {recipe.data.crop} x {recipe.data.crop} pixels"] = _activations(recipe, images)
        largest = sorted(users, key=lambda name: -users[name])[:MOST]
        lines = ["largest users of a rank's memory (estimated):"]
        lines += [f"  {mebibytes(users[name]):>9} MiB  {WORDS.get(name, name)}" for name in largest]
        if not largest[0].startswith("activations") and num_ranks > 1 and not launch_env.zero_stage():
            lines.append("least costly: --config_file launch/accelerate/zero2.yaml divides states and gradients among the ranks")
        elif recipe.data.crop:
            lines.append(_cheapest(recipe, images))
    return "\n".join(lines)


def _state(recipe: Recipe, num_ranks: int) -> dict[str, int]:
    stage = launch_env.zero_stage()
    with FakeTensorMode(allow_non_fake_inputs=True):  # constants in caches
        objective, networks = objective_and_networks(recipe)
        network_sizes = {phase: sizes(network) for phase, network in networks.items()}
        content = held(in_precision(objective, recipe.precision))
        row = backend_row(recipe, network_sizes, content, f"ZeRO-{stage}" if stage else "DDP", num_ranks)
    return {name: row[name] for name in COLUMNS}


def _activations(recipe: Recipe, images: int) -> int:
    """Of the phase that has most."""
    return max(activations(recipe, images).values())


def _cheapest(recipe: Recipe, images: int) -> str:
    before = _activations(recipe, images)
    for option, changed, own_images, cost in _changes(recipe, images):
        with suppress(UserError):  # a part refuses it
            after = _activations(checks.complete(changed), own_images)
            if after < before:
                return (
                    f"least costly: {option}: about {mebibytes(after)} MiB of activations instead of {mebibytes(before)}; {cost}"
                )
    return "least costly: a smaller --data.batch or --data.crop"


def _changes(recipe: Recipe, images: int) -> Iterator[tuple[str, Recipe, int, str]]:
    """(option, the recipe with it, images of a micro-batch, what it costs), the one that costs least first."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        _, networks = objective_and_networks(recipe)
    normed = any(isinstance(module, _BatchNorm) for network in networks.values() for module in network.modules())
    if images > 1 and not normed:
        changed = recipe.model_copy(update={"accumulate": 2 * recipe.accumulate})
        yield f"--accumulate={2 * recipe.accumulate}", changed, -(-images // 2), "the result stays the same"
    first = next(iter(networks.values()))
    if not recipe.checkpointing and (blocks := repeated_blocks(first)) != [first]:
        names = {module: name for name, module in first.named_modules()}
        patterns = tuple(dict.fromkeys(re.sub(r"\b[0-9]+\b", "*", names[block]) for block in blocks))
        changed = recipe.model_copy(update={"checkpointing": patterns})
        yield (
            f"--checkpointing={','.join(patterns)}",
            changed,
            images,
            "the result stays the same, a step takes about a third longer",
        )
    if recipe.precision == "no":
        yield "--precision=bf16", recipe.model_copy(update={"precision": "bf16"}), images, "results differ by rounding"
