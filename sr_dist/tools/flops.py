"""Floating point operations of a training step, counted once per recipe.

Matrix products and convolutions count, one multiplication and addition as two, forward and backward, of all networks.
Recomputed activations count once, so the share of the peak says how well the device is used for the recipe.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sr_dist.core.errors import first_line
from sr_dist.core.files import cache_folder, sha256, write_whole
from sr_dist.core.json_text import read_json
from sr_dist.core.version import __version__
from sr_dist.recipe import checks
from sr_dist.recipe.sections import Recipe
from sr_dist.tools.step_inputs import random_batch, shapes_only, without_published_weights
from sr_dist.training.step import Around, Precision, take_step

logger = logging.getLogger("sr_dist")
IMAGES = 2  # in the batch that is counted: batch normalization refuses one


def per_image_once(recipe: Recipe) -> float | None:
    """`per_image`, kept in the user's cache folder: counting takes seconds, and a recipe's count never changes.

    None where it cannot be counted: whole images of any size, or an operation that needs real numbers.
    """
    if recipe.data.crop is None:
        return None
    file = cache_folder() / "operations" / f"{_digest(recipe)}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        return float(read_json(file)["flops_per_image"])
    try:
        flops = per_image(recipe)
    except Exception as problem:  # a user's own part may do anything; training does not depend on this
        logger.info(f"TFLOP/s are not reported: this recipe's operations cannot be counted ({first_line(problem)})")
        return None
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps({"recipe": recipe.name, "flops_per_image": flops}).encode())
    return flops


def _digest(recipe: Recipe) -> str:
    """Identifies everything that the count depends on: parts with options and source files, sizes, versions."""
    parts = {key: part.model_dump(mode="json") for key, part in recipe.parts().items()}
    sources = [sha256(Path(module.__file__)) for module, _, _ in checks.part_modules(recipe) if module.__file__]
    sizes = [recipe.scale, recipe.data.crop, list(recipe.init.freeze), recipe.channels]
    facts = [parts, sources, sizes, torch.__version__, __version__]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def per_image(recipe: Recipe) -> float:
    """Operations of one step over its images."""
    step = step_without_numbers(recipe, IMAGES)
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / IMAGES


def step_without_numbers(recipe: Recipe, images: int) -> Callable[[], object]:
    """A training step on tensors that have shapes but no numbers; the networks exist already, so that only the step is counted.

    The tensors are on the meta device: fake tensors would stay behind in caches that keep tensors between calls.
    """
    plain = without_published_weights(recipe.model_copy(update={"checkpointing": ()}))
    objective, networks = shapes_only(plain)
    with torch.random.fork_rng(devices=[]):
        batch = random_batch(plain, images, torch.device("meta"))
    engines = {phase: GradientsOnly(network) for phase, network in networks.items()}
    rates = dict.fromkeys(engines, 0.0)
    around = Around(average=networks["generator"] if checks.reads_average(plain) else None)
    return lambda: take_step(objective, engines, [batch], Precision("no", "meta"), rates, around)


class GradientsOnly:
    """A `StepEngine` that computes gradients and discards them."""

    def __init__(self, network: nn.Module) -> None:
        self.network = self.bare = network

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        trained = [p for p in self.bare.parameters() if p.requires_grad]
        loss.backward(inputs=trained)  # torch's counter refuses autograd.grad where a module's input is a weight (ATD)
        for parameter in trained:
            parameter.grad = None

    def step(self, learning_rate: float) -> Tensor:
        return torch.zeros(())
