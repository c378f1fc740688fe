"""What a training step needs when nothing is trained: networks without starting weights, and a random batch."""

from __future__ import annotations

import logging
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sr_dist.core.batch import Batch
from sr_dist.core.errors import UserError, first_line
from sr_dist.recipe import checks
from sr_dist.recipe.sections import Recipe
from sr_dist.training.networks import build_objective, phase_network


def objective_and_networks(recipe: Recipe) -> tuple[Any, dict[str, nn.Module]]:
    objective = build_objective(recipe)
    return objective, {phase: phase_network(recipe, phase, resuming=True, notes=[]) for phase in objective.phases}


def shapes_only(recipe: Recipe) -> tuple[Any, dict[str, nn.Module]]:
    """The same on the meta device: shapes without numbers, and without initial values, which some of torch's functions read."""
    with quiet(), torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                objective, networks = objective_and_networks(recipe)
        except NotImplementedError:  # networks of spandrel that compute with tensors while they are built need numbers
            objective, networks = objective_and_networks(recipe)
    for module in (objective, *networks.values()):
        module.to("meta")  # what was loaded from a file, or made by torch.Tensor(...), which does not heed the device
    return objective, networks


def random_batch(recipe: Recipe, images: int, device: torch.device) -> Batch:
    channels, crop = recipe.channels, recipe.data.crop
    assert crop
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    sides = (crop // recipe.scale, crop)
    lr, hr = (torch.rand(images, channels, s, s, device=device).contiguous(memory_format=layout) for s in sides)
    label = torch.zeros(images, dtype=torch.long, device=device)
    attributes: dict[str, Tensor] = defaultdict(lambda: torch.zeros(images, device=device))  # for any name
    return Batch(lr, hr, label, (), attributes, share=images / recipe.data.batch)


def without_published_weights(recipe: Recipe) -> Recipe:
    """Content terms that would read published files get as many random numbers instead."""
    if "content" not in recipe.objective.options:
        return recipe
    content = dict(recipe.objective.options["content"])
    for module, term, key in checks.content_terms(recipe):
        name = key.removeprefix("objective.content.")
        if hasattr(module, "files") and module.files(term):
            content[name] = {**content[name], "weights": "random"}
    return recipe.model_copy(update={"objective": recipe.objective.with_options(content=content)})


@contextmanager
def counting() -> Iterator[None]:
    """What is computed of networks without numbers, in which a user's own part may fail in any way: one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as problem:
        raise UserError(
            f"operations cannot be counted: the networks do not run on tensors without numbers ({first_line(problem)}); "
            f"sr_dist.bench step measures them"
        ) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Without warnings about random weights, which are intended."""
    logger = logging.getLogger("sr_dist")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # weights of a frozen classifier do not fit into tensors without numbers
            yield
    finally:
        logger.setLevel(level)
