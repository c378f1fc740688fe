"""From a recipe file to settings that fit together: names, sections, data, parts. No torch before `complete`: a mistake is said
before anything heavy is loaded. One recipe is one stage is one run folder.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from sr_dist import config, plugins, pretrained
from sr_dist.config import Names, Settings
from sr_dist.data.format import Shards
from sr_dist.data.remote import open_shards
from sr_dist.data.select import portion_rows, shares
from sr_dist.errors import UserError, nearest
from sr_dist.labels import SCORES, labels_of
from sr_dist.sections import Augment, Data, Part, Recipe

PACKAGES = {
    "generator": "sr_dist.models.generators",
    "discriminator": "sr_dist.models.discriminators",
    "classifier": "sr_dist.models.classifiers",
    "objective": "sr_dist.objectives",
    "degradation": "sr_dist.data.degradations",
    "content": "sr_dist.losses.content",
}
METRICS = "sr_dist.eval.metrics"  # their files have no options


def load(path: str | Path, options: Mapping[str, str]) -> Recipe:
    """A recipe file and `--key.sub=value` -> settings whose sections, names and data fit together."""
    recipe = stated(path, options)
    shards = recipe.data.opened()[0]
    recipe = _with_outputs(_with_classes(recipe, shards), shards)
    check_data(recipe)
    check_world(recipe, int(os.environ.get("WORLD_SIZE", "1")))
    return recipe


def load_without_data(path: str | Path, options: Mapping[str, str]) -> Recipe:
    """The same where the shards may be on another machine: enough to build the networks. Only counts of classes need them."""
    recipe = stated(path, options)
    key, said = (
        ("classifier.outputs", _outputs(recipe)) if recipe.classifier else ("discriminator.classes", recipe.critic_classes)
    )
    if said != "manifest":
        return recipe
    try:
        shards = recipe.data.opened()[0]
        return _with_outputs(_with_classes(recipe, shards), shards)
    except UserError as problem:
        raise UserError(f"{key}: manifest, but {problem}; --{key}=N does without shards") from None


def stated(path: str | Path, options: Mapping[str, str]) -> Recipe:
    """What recipe and options say by themselves, whether or not there are data."""
    recipe = config.typed(Recipe, config.override(config.read(path), options))
    check_names(recipe)
    check_agreement(recipe)
    return recipe


def check_names(recipe: Recipe) -> None:
    for key, part in recipe.parts().items():
        plugins.check(PACKAGES[key.split(".")[-1]], part.name, part.options, key)
    for name, section in content_parts(recipe.objective.options.get("content", {"l1": "1"})).items():
        plugins.check(PACKAGES["content"], name, section[1], f"objective.content.{name}")
    for name in recipe.metrics:
        plugins.locate(METRICS, name, "metrics")


def check_agreement(recipe: Recipe) -> None:
    """Sections that must say the same."""
    if not recipe.generator and not recipe.classifier:
        raise UserError("generator: this key is missing (or classifier, for a recipe that trains one)")
    if recipe.generator and recipe.discriminator:
        ours, theirs = (str(part.options.get("channels", 3)) for part in (recipe.generator, recipe.discriminator))
        if ours != theirs:
            raise UserError(f"discriminator.channels: {theirs}, but the generator makes images of {ours}")
    if recipe.keep.best:
        known = list(SCORES) if recipe.classifier else list(columns(recipe.metrics, recipe.extractor))
        if recipe.keep.best not in known:
            metrics = ", ".join(SCORES if recipe.classifier else recipe.metrics)
            near = nearest(recipe.keep.best, known)
            raise UserError(f"keep.best: '{recipe.keep.best}' is no column of the metrics {metrics}{near}")


def metric_facts(metrics: Iterable[str], fact: str) -> dict[str, str]:
    """What the files of metrics say of their columns under `BETTER` or `NEEDS`."""
    paths = [plugins.locate(METRICS, name, "metrics")[1] for name in metrics]
    return {column: value for path in paths for column, value in (plugins.literal(path, fact) or {}).items()}


def columns(metrics: Iterable[str], extractor: str | None = None) -> dict[str, str]:
    """The columns of metrics -> whether "higher" or "lower" is better."""
    found: dict[str, str] = {}
    for name in metrics:
        own = metric_facts([name], "BETTER")
        found |= {foreign(c, called(extractor)): sense for c, sense in own.items()} if extractor and of_sets(name) else own
    return found


def of_sets(metric: str) -> bool:
    """Whether it compares sets of images, by what a network sees in them."""
    return plugins.literal(plugins.locate(METRICS, metric, "metrics")[1], "VIEW") is not None


def foreign(column: str, extractor: str) -> str:
    """What a distance between features of another network than the FID Inception is called: never by its name."""
    return column.replace("fid", "fd").replace("kid", "kd") + f"_{extractor}"


def called(extractor: str) -> str:
    """A run by its folder, a file by its own name."""
    return Path(extractor).resolve().name if Path(extractor).is_dir() else Path(extractor).stem


def senses() -> dict[str, str]:
    """Every column that a validation can have -> whether "higher" or "lower" is better."""
    return {**metric_facts(plugins.names(METRICS), "BETTER"), **dict.fromkeys(SCORES, "higher")}


def sense(column: str) -> str | None:
    """Whether "higher" or "lower" is better in a column of a validation, whatever its extractor is called."""
    known = senses()
    sets = metric_facts([name for name in plugins.names(METRICS) if of_sets(name)], "BETTER")
    return known.get(column) or next((known[c] for c in sets if column.startswith(foreign(c, ""))), None)


def content_parts(content: Any) -> dict[str, tuple[float, dict[str, Any]]]:
    """`{l1: 0.01, vgg: {weight: 1, layers: ...}}` -> {name: (weight, options)}."""
    if not isinstance(content, Mapping):
        raise UserError(f"objective.content: wants terms with weights, such as {{l1: 1.0}}; got {content!r}")
    found = {}
    for name, section in content.items():
        options = dict(section) if isinstance(section, Mapping) else {"weight": section}
        weight = options.pop("weight", "1")
        try:
            found[name] = (float(weight), options)
        except (TypeError, ValueError):
            raise UserError(f"objective.content.{name}: {weight!r} is not a weight (a number)") from None
        if not math.isfinite(found[name][0]) or found[name][0] < 0:
            raise UserError(f"objective.content.{name}: the weight {weight} is not a number from 0 up")
    if not found:
        raise UserError("objective.content: names no term; there are l1, mse, vgg and what else losses/content holds")
    return found


def _with_classes(recipe: Recipe, shards: Shards) -> Recipe:
    """`discriminator.classes: manifest` becomes the count of the shards; a stated count must agree with it."""
    stated, there = recipe.critic_classes, len(shards.manifest.classes)
    if stated == "none":
        return recipe
    if not there:
        raise UserError(f"discriminator.classes: '{stated}', but the shards in '{shards.folder}' have no classes; say none")
    if stated not in ("manifest", str(there)):
        raise UserError(
            f"discriminator.classes: {stated}, but the manifest of '{shards.folder}' has {there}; say manifest or {there}"
        )
    assert recipe.discriminator
    part = Part(name=recipe.discriminator.name, **{**recipe.discriminator.options, "classes": there})
    return recipe.model_copy(update={"discriminator": part})


def _outputs(recipe: Recipe) -> str:
    """What the recipe says of its classifier's outputs; `manifest` where only the shards know."""
    return str(recipe.classifier.options.get("outputs", "manifest")) if recipe.classifier else "none"


def _with_outputs(recipe: Recipe, shards: Shards) -> Recipe:
    """A classifier's outputs are as many as `objective.labels`; `balance: weights` needs to know how common each is."""
    if not recipe.classifier:
        return recipe
    wanted = config.typed(_Labels, {"labels": recipe.objective.options.get("labels", "class")}, "objective").labels
    labels, stated = labels_of(wanted, shards, "objective.labels"), _outputs(recipe)
    if stated not in ("manifest", str(len(labels.names))):
        raise UserError(
            f"classifier.outputs: {stated}, but objective.labels are {labels}; leave it out, or say {len(labels.names)}"
        )
    classifier = Part(name=recipe.classifier.name, **{**recipe.classifier.options, "outputs": len(labels.names)})
    objective = recipe.objective
    if objective.options.get("balance") == "weights":
        found = shares(shards, recipe.data.portion(0), labels)
        for name, share in zip(labels.names, found, strict=True):
            if not share or (labels.kind == "attributes" and share == 1):
                raise UserError(f"objective.balance: weights, but {'no' if not share else 'every'} training sample is '{name}'")
        objective = Part(name=objective.name, **{**objective.options, "shares": list(found)})
    return recipe.model_copy(update={"classifier": classifier, "objective": objective})


class _Labels(Settings):
    labels: Names


def check_data(recipe: Recipe) -> None:
    data, scale = recipe.data, recipe.scale
    if data.crop and data.crop % scale:
        low = data.crop // scale * scale
        around = f"{low} and {low + scale}" if low else f"{scale}"
        raise UserError(f"data.crop: {data.crop} is not a multiple of scale {scale}; nearest are {around}")
    opened = data.opened()
    _check_alike(recipe, opened)
    for source, shards in zip(data.sources, opened, strict=True):
        _check_shards(source, shards, data, scale)
    if data.validation:
        _check_validation(data.validation, data, scale)


def _check_validation(place: str, data: Data, scale: int) -> None:
    """Shards, or a folder of images, of which nothing is known before they are opened."""
    if Path(place).is_dir() and not (Path(place) / "manifest.json").is_file():
        return
    manifest = open_shards(place, "data.validation", data.cached()).manifest
    if manifest.scale and manifest.scale != scale:
        raise UserError(f"data.validation: the LR stored in '{place}' is {manifest.scale} times smaller, and scale is {scale}")
    if manifest.min_side < scale:
        raise UserError(f"data.validation: '{place}' has an image with a side of {manifest.min_side}, below the scale {scale}")


def _check_shards(source: str, shards: Shards, data: Data, scale: int) -> None:
    if data.on_corrupt == "fail":
        shards.check_sizes()
    if os.environ.get("LOCAL_RANK", "0") == "0":  # once per node is enough
        shards.check_indexes()
    if data.crop and data.crop > shards.manifest.min_side and data.small == "refuse":
        fits = shards.manifest.min_side // scale * scale
        raise UserError(
            f"data.crop: {data.crop} is more than the smallest side of '{source}', {shards.manifest.min_side}; "
            f"{f'{fits} fits' if fits else f'no multiple of scale {scale} fits'}, "
            f"and data.small=replicate repeats the edges of small images"
        )
    if not data.crop and shards.manifest.min_side < scale:
        side = shards.manifest.min_side
        raise UserError(f"data.crop: none, but '{source}' has an image with a side of {side}, below the scale {scale}")
    if shards.manifest.scale and shards.manifest.scale != scale:
        raise UserError(f"scale: {scale}, but the LR images stored in '{source}' are {shards.manifest.scale} times smaller")
    if shards.manifest.scale and data.augment != Augment():
        raise UserError(
            f"data.augment: '{source}' stores LR images, which it would not fit; it works where LR is made on the way"
        )
    chooses = bool(data.select or data.balance)  # names and counts that are not there are refused on the way
    for part in range(max(len(data.split), chooses)):
        if not sum(len(rows) for rows in portion_rows(shards, data.portion(part))):
            raise UserError(f"data.split: no sample of '{source}' falls into part {part + 1} of {list(data.split)}")


def _check_alike(recipe: Recipe, opened: list[Shards]) -> None:
    """Data sets that are mixed meet in one batch."""
    sources, first = recipe.data.sources, opened[0].manifest
    if len(opened) > 1 and (key := next((name for name in ("select", "balance", "split") if getattr(recipe.data, name)), "")):
        raise UserError(f"data.{key}: chooses from one data set; with several in data.train, build shards of what you want")
    for source, shards in zip(sources[1:], opened[1:], strict=True):
        if bool(shards.manifest.scale) != bool(first.scale):
            raise UserError(f"data.train: one of '{sources[0]}' and '{source}' stores LR images and the other does not")
        if shards.manifest.attributes != first.attributes:
            raise UserError(f"data.train: '{sources[0]}' and '{source}' have different attributes")
        if recipe.critic_classes != "none" and shards.manifest.classes != first.classes:
            raise UserError(f"data.train: '{sources[0]}' and '{source}' have different classes, and a critic learns them")


def check_world(recipe: Recipe, ranks: int) -> None:
    parts = ranks * recipe.accumulate
    if recipe.data.batch < parts:
        raise UserError(f"data.batch: {recipe.data.batch} is less than ranks x accumulate = {ranks} x {recipe.accumulate}")
    if recipe.data.crop is None and recipe.data.batch % ranks:
        raise UserError(f"data.batch: {recipe.data.batch} whole images (data.crop: none) do not divide by {ranks} ranks")


def complete(recipe: Recipe) -> Recipe:
    """Imports the parts (and with them torch) and writes out their options, so that the run folder tells everything."""
    update: dict[str, Any] = {}
    for key, part in recipe.parts().items():
        module, options = plugins.resolve(PACKAGES[key.split(".")[-1]], part.name, part.options, key)
        whole = Part(name=part.name, **options.model_dump(mode="json"))
        if key == "objective":
            whole = _with_typed_content(whole)
        if key == "data.degradation":
            update["data"] = recipe.data.model_copy(update={"degradation": whole})
        else:
            update[key] = whole
        if key == "objective":
            _check_phases(recipe, module.Objective.phases)
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
    for name, (weight, options) in content_parts(part.options["content"]).items():
        _, term = plugins.resolve(PACKAGES["content"], name, options, f"objective.content.{name}")
        content[name] = {"weight": weight, **term.model_dump(mode="json")}
    return Part(name=part.name, **{**part.options, "content": content})


def find_weights(recipe: Recipe) -> None:
    """Files that networks and content terms start from: published ones are here, or fetched where that is allowed, and
    finished runs fit the recipe."""
    parts = ((*plugins.resolve(PACKAGES[key.split(".")[-1]], p.name, p.options, key), key) for key, p in recipe.parts().items())
    for module, options, key in (*parts, *content_terms(recipe)):
        for file in module.files(options) if hasattr(module, "files") else ():
            pretrained.find(file, key, download=recipe.allow_download)
        if hasattr(module, "check_runs"):
            module.check_runs(options, recipe)
    measured = recipe.metrics if recipe.data.validation or recipe.data.split else ()
    if recipe.extractor and measured:
        _check_extractor(Path(recipe.extractor))
    needing = [name for name in measured if not (recipe.extractor and of_sets(name))]
    for column, file in metric_facts(needing, "NEEDS").items():
        pretrained.find(file, f"metrics: {column}", download=recipe.allow_download)


def _check_extractor(place: Path) -> None:
    if not place.exists():
        raise UserError(f"extractor: nothing is at '{place}'")
    if place.is_dir() and not (place / "recipe.yaml").is_file():
        raise UserError(f"extractor: '{place}' is a folder, but no run of a classifier")


def content_terms(recipe: Recipe) -> Iterator[tuple[ModuleType, Any, str]]:
    """(module, typed options, key) of every content term."""
    for name, (_, options) in content_parts(recipe.objective.options.get("content", {"l1": "1"})).items():
        key = f"objective.content.{name}"
        yield *plugins.resolve(PACKAGES["content"], name, options, key), key


def check_backend(recipe: Recipe, *, zero_stage: int, cuda: bool, ranks: int) -> None:
    """Refuses parts that cannot run under what the launcher asks for; each part states it in its `refuses`."""
    for key, part in recipe.parts().items():
        module, options = plugins.resolve(PACKAGES[key.split(".")[-1]], part.name, part.options, key)
        stage = (recipe.zero.discriminator or zero_stage) if key == "discriminator" and zero_stage else zero_stage
        reason = module.refuses(options, zero_stage=stage, cuda=cuda, ranks=ranks) if hasattr(module, "refuses") else None
        if reason:
            raise UserError(f"{key}: '{part.name}': {reason}")


def refuse_classes(recipe: Recipe) -> None:
    """For objectives that do not train a critic's class head: idle parameters stop DDP."""
    if recipe.critic_classes != "none":
        raise UserError(
            f"discriminator.classes: the objective '{recipe.objective.name}' trains no class head; say none, or use srugan"
        )


def _check_phases(recipe: Recipe, phases: tuple[str, ...]) -> None:
    for key in ("generator", "discriminator", "classifier"):
        if getattr(recipe.init, key) and key not in phases:
            raise UserError(f"init.{key}: the objective '{recipe.objective.name}' trains no {key}")
    for key, example in {"generator": "rrdb", "discriminator": "acgan", "classifier": "resnet18"}.items():
        if key in phases and getattr(recipe, key) is None:
            raise UserError(f"{key}: the objective '{recipe.objective.name}' trains one; name it, such as {{name: {example}}}")
        if key not in phases and getattr(recipe, key) is not None:
            raise UserError(f"{key}: the objective '{recipe.objective.name}' trains none; leave the section out")
