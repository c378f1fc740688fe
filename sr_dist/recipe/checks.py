"""Checks of a recipe without its data: names, options, and sections that must agree. Only `complete` loads torch."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from sr_dist.core import config, launch_env, plugins
from sr_dist.core.errors import UserError, nearest
from sr_dist.core.launch_env import Launch
from sr_dist.core.plugins import PACKAGES
from sr_dist.core.run_layout import RECIPE, checkpoint_steps
from sr_dist.recipe import shipped
from sr_dist.recipe.columns import CLASSIFICATION, columns
from sr_dist.recipe.content import content_sections
from sr_dist.recipe.sections import AUTO, Mode, Part, Recipe
from sr_dist.recipe.steering import DiscriminatorTraining


def read_recipe(path: str | Path, overrides: Mapping[str, str]) -> Recipe:
    """Reads a recipe (a path, or a name of the package's), sets `--key.sub=value` overrides and checks it without its data."""
    file = shipped.locate(path)
    tree = config.read(file)
    if "network_g" in tree:
        command = f"python -m sr_dist.import_options {shlex.quote(str(path))}"
        raise UserError(f"RECIPE: '{path}' is an option file of BasicSR; `{command} > mine.yaml` makes a recipe of it")
    check_renamed_parts(tree, overrides)
    recipe = with_launchers_precision(config.typed(Recipe, config.override(tree, with_split(tree, overrides))))
    check_names(recipe)
    check_agreement(recipe)
    return recipe


def check_place(file: Path, recipe: Recipe) -> None:
    """Refuses the recipe of a run folder that was moved: training it would begin another run where the folder was."""
    run = file.resolve().parent
    if file.name == RECIPE and checkpoint_steps(run) and run != recipe.folder.resolve():
        words = f"--runs={shlex.quote(str(file.parent.parent))} --name={shlex.quote(run.name)}"
        raise UserError(
            f"RECIPE: '{file}' belongs to the run in '{file.parent}', but it names '{recipe.folder}'; {words} continues that "
            f"run, and --name=NEW begins another"
        )


def check_renamed_parts(tree: Mapping[str, Any], overrides: Mapping[str, str]) -> None:
    """A name on the command line that has other options than the section of the recipe's file."""
    for key in ("generator", "discriminator", "classifier", "objective"):
        section, name = tree.get(key), overrides.get(f"{key}.name")
        if not isinstance(section, dict) or name in (None, section.get("name")):
            continue
        assert name is not None
        known = plugins.options(plugins.locate(_package(key), name, f"{key}.name")[1])
        foreign = [option for option in section if option != "name" and known is not None and option not in known]
        if foreign:
            raise UserError(
                f"{key}.name: {name}, but the recipe's section is that of '{section.get('name')}', with {', '.join(foreign)}; "
                f"--{key}='{{name: {name}}}' takes the place of the whole section"
            )


def with_split(tree: config.Tree, overrides: Mapping[str, str]) -> Mapping[str, str]:
    """A `data.split` on the command line takes the place of the validation set that only the recipe's file names."""
    data = tree.get("data")
    stated = data.get("validation") if isinstance(data, dict) else None
    if stated in (None, "", "none") or "data.validation" in overrides or not config.parse_list(overrides.get("data.split")):
        return overrides
    if launch_env.prints_mistakes():
        print(f"note: data.split takes the place of the recipe's data.validation, '{stated}'", file=sys.stderr, flush=True)
    return {**overrides, "data.validation": "none"}


def with_launchers_precision(recipe: Recipe) -> Recipe:
    """A recipe that states no precision takes that of `accelerate launch --mixed_precision`, whose `no` says nothing."""
    launched = launch_env.mixed_precision()
    if launched is None:
        return recipe
    if launched not in get_args(Mode):
        raise UserError(f"precision: accelerate launch --mixed_precision={launched} cannot be used; choose from no, bf16, fp16")
    if "precision" in recipe.model_fields_set and recipe.precision != launched:
        raise UserError(
            f"precision: {recipe.precision}, but accelerate launch says --mixed_precision={launched}; leave one of them out"
        )
    return recipe.model_copy(update={"precision": launched})


def check_names(recipe: Recipe) -> None:
    """Every name is the name of a file, and that file has every option. `generator: auto` is named later (models/auto.py)."""
    for key, part in recipe.parts().items():
        if part.name == AUTO and key == "generator":
            check_auto(recipe, part)
            continue
        plugins.check(_package(key), part.name, part.options, key)
    for name, options, key in _content(recipe):
        plugins.check(PACKAGES["content"], name, options, key)
    for name in recipe.metrics:
        plugins.locate(PACKAGES["metric"], name, "metrics")
    for name in recipe.log.trackers:
        plugins.locate(PACKAGES["tracker"], name, "log.trackers")
    for key in ("optimizer", "discriminator_optimizer"):
        if settings := getattr(recipe, key):
            plugins.locate(PACKAGES["optimizer"], settings.name, f"{key}.name")


def check_auto(recipe: Recipe, part: Part) -> None:
    if not recipe.init.generator:
        raise UserError("generator: auto takes the network from init.generator, which is not given; name a run or a weights file")
    if part.options:
        raise UserError(f"generator.{next(iter(part.options))}: generator: auto has no options; they come from init.generator")


def check_agreement(recipe: Recipe) -> None:
    """Sections agree with each other."""
    if not recipe.generator and not recipe.classifier:
        raise UserError("generator: this key is missing (or classifier, for a recipe that trains one)")
    if recipe.generator and recipe.discriminator and recipe.generator.name != AUTO:
        made, expected = _channels(recipe.generator), _channels(recipe.discriminator)
        if made != expected:
            raise UserError(f"discriminator.channels: {expected}, but the images of the generator have {made}")
    _check_log(recipe)
    if recipe.keep.best:
        known = list(CLASSIFICATION) if recipe.classifier else list(columns(recipe.metrics, recipe.extractor))
        known += [f"{name}/{column}" for name in recipe.data.validation_sets if name for column in known]
        if recipe.keep.best not in known:
            metrics = ", ".join(CLASSIFICATION if recipe.classifier else recipe.metrics)
            near = nearest(recipe.keep.best, known)
            raise UserError(f"keep.best: '{recipe.keep.best}' is not a column of the metrics {metrics}{near}")


def _check_log(recipe: Recipe) -> None:
    log = recipe.log
    if len(set(log.trackers)) < len(log.trackers):
        raise UserError(f"log.trackers: {', '.join(log.trackers)}: a tracker is named twice")
    if "wandb" in log.trackers and "wandb" in log.model_fields_set and log.wandb == "off":
        raise UserError("log.wandb: off, but log.trackers names wandb; leave one of them out")
    if log.sync_every and log.wandb_mode != "offline":
        reason = "rows are sent at once" if log.wandb_mode == "online" else "no row goes to W&B"
        raise UserError(f"log.sync_every: {log.sync_every}, but with log.wandb: {log.wandb_mode} {reason}; it is for offline")


def _channels(part: Part) -> str:
    return str(part.options.get("channels", 3))


def check_batch(recipe: Recipe, num_ranks: int) -> None:
    """The batch can be divided among ranks and micro-batches."""
    batch, accumulate, least = recipe.data.batch, recipe.accumulate, num_ranks * recipe.accumulate
    if batch < least:
        raise UserError(f"data.batch: {batch} is less than ranks x accumulate = {num_ranks} x {accumulate}; use {least} or more")
    if recipe.data.crop is None and batch % num_ranks:
        raise UserError(f"data.batch: {batch} whole images (data.crop: none) cannot be divided by {num_ranks} ranks")


def complete(recipe: Recipe) -> Recipe:
    """Imports the parts (and torch) and adds the defaults of all their options, for the run folder's `recipe.yaml`. Each part
    checks the rest of the recipe."""
    for key, part in recipe.parts().items():
        module, options = plugins.resolve(_package(key), part.name, part.options, key)
        if key == "objective":
            _check_phases(recipe, module.Objective.phases)
        if hasattr(module, "check"):
            module.check(options, recipe)
    whole = with_defaults(recipe)
    for module, term, key in content_terms(whole):
        if getattr(module, "reads_average", False) and not recipe.ema.decay:
            raise UserError(f"{key}: it compares with the averaged generator; ema.decay: 0 averages nothing")
        if hasattr(module, "check"):
            module.check(term, whole)
    return whole


def with_defaults(recipe: Recipe) -> Recipe:
    """The recipe with the defaults of all options of its parts."""
    update: dict[str, Any] = {}
    for key, part in recipe.parts().items():
        _, options = plugins.resolve(_package(key), part.name, part.options, key)
        whole = Part(name=part.name, **options.model_dump(mode="json"))
        if key == "objective":
            whole = _with_typed_content(whole)
        if key == "data.degradation":
            update["data"] = recipe.data.model_copy(update={"degradation": whole})
        else:
            update[key] = whole
    return recipe.model_copy(update=update)


def _with_typed_content(part: Part) -> Part:
    """The objective with the defaults of its content terms' options."""
    if "content" not in part.options:
        return part
    content = {}
    for name, section in content_sections(part.options["content"]).items():
        _, term = plugins.resolve(PACKAGES["content"], name, section.options, f"objective.content.{name}")
        content[name] = {**section.stated(), **term.model_dump(mode="json")}
    return part.with_options(content=content)


def content_terms(recipe: Recipe) -> Iterator[tuple[ModuleType, Any, str]]:
    """(module, typed options, key) of every content term that the recipe names; a complete one names those of the defaults."""
    for name, options, key in _content(recipe):
        yield *plugins.resolve(PACKAGES["content"], name, options, key), key


def reads_average(recipe: Recipe) -> bool:
    """Whether a content term compares with the image of the averaged generator."""
    return any(getattr(module, "reads_average", False) for module, _, _ in content_terms(recipe))


def _content(recipe: Recipe) -> Iterator[tuple[str, dict[str, Any], str]]:
    stated = recipe.objective.options.get("content")
    for name, section in (content_sections(stated) if stated is not None else {}).items():
        yield name, section.options, f"objective.content.{name}"


def part_modules(recipe: Recipe) -> Iterator[tuple[ModuleType, Any, str]]:
    """(module, typed options, key) of every part."""
    for key, part in recipe.parts().items():
        yield *plugins.resolve(_package(key), part.name, part.options, key), key


def check_launch(recipe: Recipe, launch: Launch) -> None:
    """Refuses parts that cannot run under this launch. A part gives its reason in `refuses(config, launch)`."""
    if recipe.batch_norm == "local" and launch.stage:
        raise UserError("batch_norm: local does not run under ZeRO, which leaves every rank its own running statistics; use DDP")
    steered = recipe.discriminator_training.model_fields_set - {"noise"}
    if launch.stage == 3 and recipe.discriminator_training != DiscriminatorTraining(noise=recipe.discriminator_training.noise):
        raise UserError(
            f"discriminator_training.{min(steered)}: passes without a gradient are not tried under ZeRO-3; use stage 1, 2 or DDP"
        )
    for module, options, key in part_modules(recipe):
        if not hasattr(module, "refuses"):
            continue
        reason = module.refuses(options, launch_of_part(recipe, key, launch))
        if reason:
            raise UserError(f"{key}: '{recipe.parts()[key].name}': {reason}")
    for module, options, key in content_terms(recipe):
        if getattr(module, "reads_average", False) and launch.stage == 3:
            raise UserError(f"{key}: it would collect the averaged generator in every step under ZeRO-3; use stage 1, 2 or DDP")
        if hasattr(module, "refuses") and (reason := module.refuses(options, launch)):
            raise UserError(f"{key}: {reason}")


def launch_of_part(recipe: Recipe, key: str, launch: Launch) -> Launch:
    """The launch as it applies to one part: the discriminator may have a ZeRO stage of its own."""
    if key != "discriminator" or not launch.stage or recipe.zero.discriminator is None:
        return launch
    return replace(launch, stage=recipe.zero.discriminator)


def refuse_classes(recipe: Recipe) -> None:
    """For objectives that do not train a class head: DDP fails on parameters without gradients."""
    if recipe.discriminator_classes != "none":
        raise UserError(
            f"discriminator.classes: the objective '{recipe.objective.name}' trains no class head; write none, or use srugan"
        )


def _package(key: str) -> str:
    return PACKAGES[key.split(".")[-1]]


def _check_phases(recipe: Recipe, phases: tuple[str, ...]) -> None:
    if not phases or phases[0] not in ("generator", "classifier") or phases[1:] not in ((), ("discriminator",)):
        raise UserError(
            f"objective: '{recipe.objective.name}' has the phases {', '.join(phases) or 'none'}; "
            f"there is one, generator or classifier, and after it at most a discriminator"
        )
    for key in ("generator", "discriminator", "classifier"):
        if getattr(recipe.init, key) and key not in phases:
            raise UserError(f"init.{key}: the objective '{recipe.objective.name}' trains no {key}")
    for key, example in {"generator": "rrdb", "discriminator": "acgan", "classifier": "resnet18"}.items():
        if key == "discriminator" and key not in phases and recipe.discriminator_training != DiscriminatorTraining():
            raise UserError(f"discriminator_training: the objective '{recipe.objective.name}' trains no discriminator")
        if key in phases and getattr(recipe, key) is None:
            raise UserError(f"{key}: the objective '{recipe.objective.name}' trains one; name it, such as {{name: {example}}}")
        if key not in phases and getattr(recipe, key) is not None:
            raise UserError(f"{key}: the objective '{recipe.objective.name}' trains none; leave the section out")
