"""The recipes of configs/ as tests train them: thin networks, small crops, few images, the same code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import data_kinds
from finished import finished

from sr_dist.core import config
from sr_dist.recipe.labels import Labels
from sr_dist.recipe.sections import Recipe

# The options that shrink a network, by its name: the same layers, few channels.
THIN = {
    "srcnn": {"widths": "[16, 8]"},
    "srresnet": {"num_blocks": "2", "width": "16"},
    "rrdb": {"num_blocks": "1", "width": "16", "growth": "8"},
    "srugan": {"widths": "[8, 12]", "num_blocks": "1", "num_dense_blocks": "1", "reduction": "4"},
    "swinir": {"width": "12", "depths": "[2]", "heads": "3", "window": "4"},
    "srgan_vgg": {"width": "8", "features": "16", "crop": "32"},
    "unet_sn": {"width": "8"},
    "acgan": {"widths": "[8, 12]", "features": "16"},
    "patch": {"widths": "[8, 12]"},
    "resnet18": {"stem": "imagenet"},  # it halves the image five times; this stem leaves the same layers few pixels
    "digit_cnn": {"widths": "[8, 12, 16]", "features": "[16, 16]", "dropout": "0"},
}


def small_classifiers(folder: Path) -> dict[str, str]:
    """Tiny classifiers instead of those that the losses of recipes use, by the names of their runs."""
    labels_by_run = {
        "classifier_digits": Labels("class", tuple("0123456789")),
        "classifier_eyeglasses": Labels("attributes", ("Eyeglasses",)),
        "classifier_gender": Labels("attributes", ("Male",)),
        "classifier_hat": Labels("attributes", ("Wearing_Hat",)),
    }
    sizes = {"classifier_digits": 28}
    return {
        name: finished(folder / f"{name}.safetensors", labels, size=sizes.get(name, 32)) for name, labels in labels_by_run.items()
    }


def read(path: Path) -> Recipe:
    return config.typed(Recipe, config.read(path))


def fewer(counts: object) -> object:
    """A thousandth of every count; "at most 10000" stays, because that is what it is for."""
    if str(counts).isdigit():
        return max(int(str(counts)) // 1000, 1)
    if isinstance(counts, Mapping):
        return {name: fewer(count) for name, count in counts.items()}
    return [fewer(count) for count in counts] if isinstance(counts, list | tuple) else counts


def for_few_images(path: Path) -> dict[str, str]:
    """Overrides for dozens of images instead of the thousands that a recipe selects."""
    data = config.read(path)["data"]
    return {f"data.{key}": json.dumps(fewer(data[key])) for key in ("select", "balance") if key in data}


def twin(path: Path, shards: Path, runs: Path, classifiers: dict[str, str]) -> dict[str, str]:
    """Overrides under which the recipe trains in seconds."""
    recipe = read(path)
    options = {
        "data.train": str(shards), "data.validation": "none", "runs": str(runs), "data.batch": "4",
        "data.workers": "0", "optimizer.learning_rate": "2e-3", "schedule": "{name: constant}", "precision": "no",
        "init.generator": "none", "init.classifier": "none", "log.wandb": "off", **for_few_images(path),
        "data.crop": "28" if data_kinds.kind(recipe.data.train) == "mnist" else "32",
    }  # fmt: skip
    parts = {"generator": recipe.generator, "discriminator": recipe.discriminator, "classifier": recipe.classifier}
    for section, part in parts.items():
        for key, value in THIN.get(part.name, {}).items() if part else ():
            options[f"{section}.{key}"] = value
    if recipe.classifier:
        options |= {"data.augment": "{}", "data.flip": "false"}  # the batch never changes
    if "classifier" in recipe.objective.options.get("content", {}):
        runs_of = recipe.objective.options["content"]["classifier"]["runs"]
        options["objective.content.classifier.runs"] = ",".join(classifiers[Path(run).name] for run in runs_of)
    if recipe.generator and recipe.generator.options.get("skip") == "bicubic":
        options["optimizer.learning_rate"] = "2e-5"  # the bicubic image is already good
    if "vgg" in recipe.objective.options.get("content", {}):
        options["objective.content.vgg.weights"] = "random"
        if recipe.objective.options["content"]["vgg"]["distance"] == "mse":  # random features are small, their squares smaller
            options["objective.content.vgg.weight"] = "1e4"
    return options
