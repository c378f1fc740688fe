"""How much a device computes while it trains: floating point operations of a step, counted once, over the time it took.

Products and convolutions count, one multiplication and addition as two, forward and backward, of all networks. Work that
is done twice to save memory counts once, so the share of the peak says how well the device is used for the recipe.
"""

from __future__ import annotations

import hashlib
import json
import logging
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sr_dist.core.errors import first_line
from sr_dist.core.files import cache_folder, sha256, write_whole
from sr_dist.core.version import __version__
from sr_dist.recipe import checks
from sr_dist.recipe.sections import Recipe
from sr_dist.tools import memory
from sr_dist.training.step import Precision, take_step

logger = logging.getLogger("sr_dist")
IMAGES = 2  # in the batch that is counted: batch normalisation refuses one


def per_image_once(recipe: Recipe) -> float | None:
    """The same as `per_image`, kept in the user's cache folder: counting takes seconds, and a recipe's count never changes.

    None where it cannot be counted: whole images of any size, or an operation that needs real numbers.
    """
    if recipe.data.crop is None:
        return None
    file = cache_folder() / "operations" / f"{_digest(recipe)}.json"
    with suppress(OSError, ValueError, KeyError):
        return float(json.loads(file.read_text())["flops_per_image"])
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
    """Names everything that the count depends on: the parts with their options and source files, the sizes, the versions."""
    parts = {key: part.model_dump(mode="json") for key, part in recipe.parts().items()}
    sources = [sha256(Path(module.__file__)) for module, _, _ in checks.modules(recipe) if module.__file__]
    sizes = [recipe.scale, recipe.data.crop, list(recipe.init.freeze), recipe.channels]
    facts = [parts, sources, sizes, torch.__version__, __version__]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def per_image(chosen: Recipe) -> float:
    """Operations of one step over the images in it, counted on tensors that have shapes but no numbers.

    On the meta device, for fake tensors would stay behind in whatever remembers a tensor between calls.
    """
    once = memory.without_weights(chosen.model_copy(update={"checkpointing": ()}))
    with memory.quiet(), torch.random.fork_rng(devices=[]), torch.device("meta"):
        objective, networks = memory.parts(once)
        batch = memory.random_batch(once, IMAGES, torch.device("meta"))
    with FlopCounterMode(display=False) as counted:
        engines = {name: GradientsOnly(network) for name, network in networks.items()}
        take_step(objective, engines, [batch], Precision("no", "meta"), dict.fromkeys(engines, 0.0))
    return counted.get_total_flops() / IMAGES


class GradientsOnly:
    """An engine that computes gradients and keeps none, so that tensors without numbers do."""

    def __init__(self, network: nn.Module) -> None:
        self.network = self.bare = network

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        torch.autograd.grad(loss, [p for p in self.bare.parameters() if p.requires_grad], allow_unused=True)

    def step(self, learning_rate: float) -> Tensor:
        return torch.zeros(())
