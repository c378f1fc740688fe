"""Checks of a recipe by itself: names, options and sections that must agree. No torch before `complete`, and no data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from sr_dist.core import config, plugins
from sr_dist.core.errors import UserError, nearest
from sr_dist.core.launch_env import Launch
from sr_dist.core.plugins import PACKAGES
from sr_dist.recipe.columns import CLASSIFICATION, columns
from sr_dist.recipe.content import content_sections
from sr_dist.recipe.sections import Part, Recipe

DEFAULT_CONTENT = {"l1": "1"}


def stated(path: str | Path, overrides: Mapping[str, str]) -> Recipe:
    """A recipe file with `--key.sub=value` overrides, checked without its data."""
    recipe = config.typed(Recipe, config.override(config.read(path), overrides))
    check_names(recipe)
    check_agreement(recipe)
    return recipe


def check_names(recipe: Recipe) -> None:
    """Every name is a file, and every option is one of that file's."""
    for key, part in recipe.parts().items():
        plugins.check(_package(key), part.name, part.options, key)
    for name, (_, options) in content_sections(recipe.objective.options.get("content", DEFAULT_CONTENT)).items():
        plugins.check(PACKAGES["content"], name, options, f"objective.content.{name}")
    for name in recipe.metrics:
        plugins.locate(PACKAGES["metric"], name, "metrics")
    for key in ("optimizer", "discriminator_optimizer"):
        if settings := getattr(recipe, key):
            plugins.locate(PACKAGES["optimizer"], settings.name, f"{key}.name")


def check_agreement(recipe: Recipe) -> None:
    """Sections that must say the same."""
    if not recipe.generator and not recipe.classifier:
        raise UserError("generator: this key is missing (or classifier, for a recipe that trains one)")
    if recipe.generator and recipe.discriminator:
        ours, theirs = (str(part.options.get("channels", 3)) for part in (recipe.generator, recipe.discriminator))
        if ours != theirs:
            raise UserError(f"discriminator.channels: {theirs}, but the generator makes images of {ours}")
    if recipe.keep.best:
        known = list(CLASSIFICATION) if recipe.classifier else list(columns(recipe.metrics, recipe.extractor))
        if recipe.keep.best not in known:
            metrics = ", ".join(CLASSIFICATION if recipe.classifier else recipe.metrics)
            near = nearest(recipe.keep.best, known)
            raise UserError(f"keep.best: '{recipe.keep.best}' is no column of the metrics {metrics}{near}")


def check_world(recipe: Recipe, ranks: int) -> None:
    """The batch can be divided among ranks and micro-batches."""
    parts = ranks * recipe.accumulate
    if recipe.data.batch < parts:
        raise UserError(f"data.batch: {recipe.data.batch} is less than ranks x accumulate = {ranks} x {recipe.accumulate}")
    if recipe.data.crop is None and recipe.data.batch % ranks:
        raise UserError(f"data.batch: {recipe.data.batch} whole images (data.crop: none) do not divide by {ranks} ranks")


def complete(recipe: Recipe) -> Recipe:
    """Imports the parts, and with them torch, and writes out all their options for the run folder's `recipe.yaml`."""
    update: dict[str, Any] = {}
    for key, part in recipe.parts().items():
        module, options = plugins.resolve(_package(key), part.name, part.options, key)
        whole = Part(name=part.name, **options.model_dump(mode="json"))
        if key == "objective":
            whole = _with_typed_content(whole)
            _check_phases(recipe, module.Objective.phases)
        if key == "data.degradation":
            update["data"] = recipe.data.model_copy(update={"degradation": whole})
        else:
            update[key] = whole
        if hasattr(module, "check"):  # what the part asks of the rest of the recipe
            module.check(options, recipe)
    for module, term, _ in content_terms(recipe):
        if hasattr(module, "check"):
            module.check(term, recipe)
    return recipe.model_copy(update=update)


def _with_typed_content(part: Part) -> Part:
    """The objective with every option of its content terms written out."""
    if "content" not in part.options:
        return part
    content = {}
    for name, (weight, options) in content_sections(part.options["content"]).items():
        _, term = plugins.resolve(PACKAGES["content"], name, options, f"objective.content.{name}")
        content[name] = {"weight": weight, **term.model_dump(mode="json")}
    return part.with_options(content=content)


def content_terms(recipe: Recipe) -> Iterator[tuple[ModuleType, Any, str]]:
    """(module, typed options, key) of every content term."""
    for name, (_, options) in content_sections(recipe.objective.options.get("content", DEFAULT_CONTENT)).items():
        key = f"objective.content.{name}"
        yield *plugins.resolve(PACKAGES["content"], name, options, key), key


def modules(recipe: Recipe) -> Iterator[tuple[ModuleType, Any, str]]:
    """(module, typed options, key) of every part."""
    for key, part in recipe.parts().items():
        yield *plugins.resolve(_package(key), part.name, part.options, key), key


def check_launch(recipe: Recipe, launch: Launch) -> None:
    """Refuses parts that cannot run under this launch. A part states its reasons in `refuses(config, launch)`."""
    for module, options, key in modules(recipe):
        if not hasattr(module, "refuses"):
            continue
        reason = plugins.call_refuses(module, options, launch_of(recipe, key, launch), key)
        if reason:
            raise UserError(f"{key}: '{recipe.parts()[key].name}': {reason}")


def launch_of(recipe: Recipe, key: str, launch: Launch) -> Launch:
    """The launch as one network sees it: the discriminator may have a ZeRO stage of its own."""
    if key != "discriminator" or not launch.stage or recipe.zero.discriminator is None:
        return launch
    return Launch(launch.backend, recipe.zero.discriminator, launch.ranks, launch.cuda, launch.compiled)


def refuse_classes(recipe: Recipe) -> None:
    """For objectives that do not train a discriminator's class head: idle parameters stop DDP."""
    if recipe.discriminator_classes != "none":
        raise UserError(
            f"discriminator.classes: the objective '{recipe.objective.name}' trains no class head; say none, or use srugan"
        )


def _package(key: str) -> str:
    return PACKAGES[key.split(".")[-1]]


def _check_phases(recipe: Recipe, phases: tuple[str, ...]) -> None:
    for key in ("generator", "discriminator", "classifier"):
        if getattr(recipe.init, key) and key not in phases:
            raise UserError(f"init.{key}: the objective '{recipe.objective.name}' trains no {key}")
    for key, example in {"generator": "rrdb", "discriminator": "acgan", "classifier": "resnet18"}.items():
        if key in phases and getattr(recipe, key) is None:
            raise UserError(f"{key}: the objective '{recipe.objective.name}' trains one; name it, such as {{name: {example}}}")
        if key not in phases and getattr(recipe, key) is not None:
            raise UserError(f"{key}: the objective '{recipe.objective.name}' trains none; leave the section out")
