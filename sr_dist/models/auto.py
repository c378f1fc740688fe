"""`generator: auto`: the network and its options are those of the weights in init.generator."""

from __future__ import annotations

from typing import Any

from sr_dist.core import config
from sr_dist.core.errors import UserError
from sr_dist.core.run_layout import RECIPE, checkpoint_steps
from sr_dist.models import trained, weights_files
from sr_dist.models.metadata import METADATA, named_in_recipe
from sr_dist.recipe import checks, shipped
from sr_dist.recipe.sections import AUTO, Part, Recipe

KEY = "init.generator"


def resolved(recipe: Recipe, name: str = "") -> Recipe:
    """The recipe with a generator in place of `auto`. A run that goes on has it in its own recipe.

    `name` is that of the recipe's file, for messages.
    """
    if not recipe.generator or recipe.generator.name != AUTO:
        return recipe
    section = recorded_section(recipe) or section_of_weights(str(recipe.init.generator), recipe.scale, name)
    recipe = recipe.model_copy(update={"generator": Part(**section)})
    checks.check_names(recipe)
    checks.check_agreement(recipe)
    return recipe


def recorded_section(recipe: Recipe) -> dict[str, Any] | None:
    """The starting weights may be gone by then."""
    if not checkpoint_steps(recipe.folder) or not (recipe.folder / RECIPE).is_file():
        return None
    section = config.read(recipe.folder / RECIPE).get("generator")
    return section if isinstance(section, dict) and section.get("name") != AUTO else None


def section_of_weights(path: str, scale: int, name: str = "") -> dict[str, Any]:
    """The generator's section as a recipe would have it, complete."""
    place, file = trained.locate(path, KEY)
    header = weights_files.header(file, KEY)  # the weights may be large, and are read when the network is built
    tensors, metadata = ({}, header) if METADATA in header else trained.read(file, KEY)
    description = trained.describe(tensors, metadata, file, KEY, named_in_recipe(place))
    if description.scale not in (None, scale):
        other = shipped.of_scale(name, description.scale)
        raise UserError(f"scale: {scale}, but '{file}' enlarges by {description.scale}; say --scale={description.scale}{other}")
    return trained.complete(description.section, "generator")
