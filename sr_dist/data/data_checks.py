"""Checks of a recipe against its data, without torch: a mistake is reported before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sr_dist.core import config, launch_env
from sr_dist.core.config import Names, Settings
from sr_dist.core.errors import UserError
from sr_dist.data.format import Shards
from sr_dist.data.open_data import cache_for, open_training_sets
from sr_dist.data.remote.sources import open_shards
from sr_dist.data.select import portion_of, rows_of_parts, shares
from sr_dist.recipe import checks
from sr_dist.recipe.labels import labels_of
from sr_dist.recipe.sections import AUTO, Augment, Data, Recipe

WITHOUT_VALIDATION = (
    "--data.validation=none trains without, and with --data.split=[0.9,0.1] a tenth of data.train is the validation set"
)


def load(path: str | Path, overrides: Mapping[str, str]) -> Recipe:
    """A recipe file and `--key.sub=value` overrides -> settings whose sections, names and data fit together."""
    recipe = _with_generator(checks.read_recipe(path, overrides), Path(path).stem)
    first = open_training_sets(recipe.data)[0]
    recipe = _with_outputs(_with_classes(recipe, first), first)
    check_data(recipe)
    checks.check_batch(recipe, launch_env.num_ranks())
    return recipe


def load_without_data(path: str | Path, overrides: Mapping[str, str]) -> Recipe:
    """The same where the shards may be on another machine: enough to build the networks. Only class counts need shards."""
    recipe = _with_generator(checks.read_recipe(path, overrides), Path(path).stem)
    if recipe.classifier:
        key, count = "classifier.outputs", _outputs(recipe)
    else:
        key, count = "discriminator.classes", recipe.discriminator_classes
    if count != "manifest":
        return recipe
    try:
        first = open_training_sets(recipe.data)[0]
        return _with_outputs(_with_classes(recipe, first), first)
    except UserError as problem:
        raise UserError(f"{key}: manifest, but {problem}; --{key}=N does without shards") from None


def _with_generator(recipe: Recipe, name: str) -> Recipe:
    """`generator: auto` becomes the network of the weights that it starts from."""
    if not recipe.generator or recipe.generator.name != AUTO:
        return recipe
    from sr_dist.models import auto  # reads weights, so it loads torch, which other recipes do later

    return auto.resolved(recipe, name)


def _with_classes(recipe: Recipe, shards: Shards) -> Recipe:
    """`discriminator.classes: manifest` becomes the count of the shards; a stated count must agree with it."""
    stated, count = recipe.discriminator_classes, len(shards.manifest.classes)
    if stated == "none":
        return recipe
    if not count:
        raise UserError(f"discriminator.classes: '{stated}', but the shards in '{shards.folder}' have no classes; say none")
    if stated not in ("manifest", str(count)):
        raise UserError(
            f"discriminator.classes: {stated}, but the manifest of '{shards.folder}' has {count}; say manifest or {count}"
        )
    assert recipe.discriminator
    return recipe.model_copy(update={"discriminator": recipe.discriminator.with_options(classes=count)})


def _outputs(recipe: Recipe) -> str:
    """The outputs of the classifier as the recipe states them; `manifest` where only the shards know."""
    return str(recipe.classifier.options.get("outputs", "manifest")) if recipe.classifier else "none"


class _Labels(Settings):
    labels: Names


def _with_outputs(recipe: Recipe, shards: Shards) -> Recipe:
    """A classifier has one output per label of `objective.labels`. `balance: weights` needs the share of each label."""
    if not recipe.classifier:
        return recipe
    words = config.typed(_Labels, {"labels": recipe.objective.options.get("labels", "class")}, "objective").labels
    labels, stated = labels_of(words, shards.label_names, "objective.labels"), _outputs(recipe)
    if stated not in ("manifest", str(len(labels.names))):
        raise UserError(
            f"classifier.outputs: {stated}, but objective.labels are {labels}; leave it out, or say {len(labels.names)}"
        )
    update = {"classifier": recipe.classifier.with_options(outputs=len(labels.names))}
    if recipe.objective.options.get("balance") == "weights":
        label_shares = shares(shards, portion_of(recipe.data), labels)
        for name, share in zip(labels.names, label_shares, strict=True):
            if not share or (labels.kind == "attributes" and share == 1):
                raise UserError(f"objective.balance: weights, but {'no' if not share else 'every'} training sample is '{name}'")
        update["objective"] = recipe.objective.with_options(shares=list(label_shares))
    return recipe.model_copy(update=update)


def check_data(recipe: Recipe) -> None:
    data, scale = recipe.data, recipe.scale
    if data.crop and data.crop % scale:
        low = data.crop // scale * scale
        around = f"{low} and {low + scale}" if low else f"{scale}"
        raise UserError(f"data.crop: {data.crop} is not a multiple of scale {scale}; nearest are {around}")
    sets = open_training_sets(data)
    _check_mixed_sets(recipe, sets)
    for source, shards in zip(data.sources, sets, strict=True):
        check_shards(source, shards, data, scale)
    for name, source in data.validation_sets.items():
        _check_validation(source, data.validation_key(name), data, scale)


def _check_validation(source: str, key: str, data: Data, scale: int) -> None:
    """Shards are checked here; a folder of images is checked when it is opened."""
    if Path(source).is_dir() and not (Path(source) / "manifest.json").is_file():
        return
    manifest = _open_validation(source, key, data).manifest
    if manifest.scale and manifest.scale != scale:
        raise UserError(f"{key}: the LR stored in '{source}' is {manifest.scale} times smaller, and scale is {scale}")
    if manifest.min_side < scale:
        raise UserError(f"{key}: '{source}' has an image with a side of {manifest.min_side}, below the scale {scale}")


def _open_validation(source: str, key: str, data: Data) -> Shards:
    try:
        return open_shards(source, key, cache_for(data))
    except UserError as problem:
        raise UserError(f"{problem}; {WITHOUT_VALIDATION}") from None


def check_shards(source: str, shards: Shards, data: Data, scale: int) -> None:
    if data.on_corrupt == "fail":
        shards.check_sizes()
    if launch_env.local_rank() == 0:  # once per node is enough
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
        raise UserError(f"data.augment: '{source}' stores LR images, which would not match; it works where LR is made on the fly")
    selects = bool(data.select or data.balance)  # selecting refuses unknown names and counts that are too large
    for part, of_part in enumerate(rows_of_parts(shards, portion_of(data)) if selects or data.split else []):
        if not sum(map(len, of_part)):
            raise UserError(f"data.split: no sample of '{source}' falls into part {part + 1} of {list(data.split)}")


def _check_mixed_sets(recipe: Recipe, sets: list[Shards]) -> None:
    """Data sets that are mixed meet in one batch, so they must have the same kind of samples."""
    sources, first = recipe.data.sources, sets[0].manifest
    if len(sets) > 1 and (key := next((name for name in ("select", "balance", "split") if getattr(recipe.data, name)), "")):
        raise UserError(f"data.{key}: selects from one data set; with several in data.train, build shards of what you want")
    for source, shards in zip(sources[1:], sets[1:], strict=True):
        if bool(shards.manifest.scale) != bool(first.scale):
            raise UserError(f"data.train: one of '{sources[0]}' and '{source}' stores LR images and the other does not")
        if shards.manifest.attributes != first.attributes:
            raise UserError(f"data.train: '{sources[0]}' and '{source}' have different attributes")
        if recipe.discriminator_classes != "none" and shards.manifest.classes != first.classes:
            raise UserError(f"data.train: '{sources[0]}' and '{source}' have different classes, and a discriminator learns them")
