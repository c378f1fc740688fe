"""The metadata of a weights file: JSON under one key of the .safetensors header, or of a .pth.

Files come from elsewhere, so metadata may only name parts of this package: a dotted name would import, and so run, a file that
came with it. Recipes and the command line may name such files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from sr_dist.core import config
from sr_dist.core.config import Settings
from sr_dist.core.errors import UserError, first_line
from sr_dist.core.formats import STAMP, refuse_unknown, stamp
from sr_dist.core.json_text import parse_json
from sr_dist.core.run_layout import RECIPE, is_run
from sr_dist.models.weights_files import Tensors
from sr_dist.recipe.labels import Labels
from sr_dist.recipe.sections import Part

METADATA = "sr_dist"  # the key
FORMAT = 1  # 0.1.0 wrote none
LARGEST = 16_000_000  # characters
LARGEST_SCALE, LARGEST_SIDE = 16, 8192


class GeneratorFacts(Settings):
    generator: Part
    scale: Annotated[int, Field(ge=1, le=LARGEST_SCALE)]


class LabelFacts(Settings):
    kind: Literal["class", "attributes"]
    names: Annotated[tuple[str, ...], Field(min_length=1)]


class ClassifierFacts(Settings):
    classifier: Part
    labels: LabelFacts
    size: Annotated[int, Field(ge=1, le=LARGEST_SIDE)] | None
    """The side of the images that it was trained on."""

    @model_validator(mode="after")
    def _one_output_per_label(self) -> ClassifierFacts:
        outputs, count = self.classifier.options.get("outputs"), len(self.labels.names)
        if outputs is not None and str(outputs) != str(count):
            raise ValueError(f"classifier.outputs: {str(outputs)[:20]}, but there are {count} labels")
        return self


def write_metadata(facts: dict[str, Any]) -> dict[str, str]:
    return {METADATA: json.dumps({**stamp(FORMAT), **facts})}


def generator_metadata(section: dict[str, Any], scale: int) -> dict[str, str]:
    """The metadata of a generator's weights file."""
    return write_metadata({"generator": section, "scale": scale})


def classifier_metadata(section: dict[str, Any], labels: Labels, size: int | None) -> dict[str, str]:
    """The metadata of a classifier's weights file. The network itself normalizes its images."""
    stated = {"kind": labels.kind, "names": list(labels.names)}
    return write_metadata({"classifier": section, "labels": stated, "size": size})


def read_metadata(metadata: dict[str, str], file: Path, key: str, trusted: Container[str] = ()) -> dict[str, Any]:
    """The facts; empty for a file without metadata of sr_dist. `trusted`: dotted names of a recipe (`named_in_recipe`)."""
    text = metadata.get(METADATA, "{}")
    try:
        facts = parse_json(text) if len(text) <= LARGEST else None
    except ValueError as problem:
        raise UserError(f"{key}: '{file}': its metadata are not JSON: {first_line(problem)}") from None
    if not isinstance(facts, dict):
        raise UserError(f"{key}: '{file}': its metadata are not those of sr_dist, or have more than {LARGEST} characters")
    refuse_unknown(facts, FORMAT, file, key)
    stated = {name: value for name, value in facts.items() if name not in STAMP}
    if not stated:
        return {}
    kind: type[GeneratorFacts | ClassifierFacts] = GeneratorFacts if "generator" in stated else ClassifierFacts
    try:
        part: Part = getattr(config.typed(kind, stated), "generator" if "generator" in stated else "classifier")
    except UserError as mistake:
        raise UserError(f"{key}: '{file}': its metadata cannot be used: {mistake}") from None
    if "." in part.name and part.name not in trusted:
        raise UserError(
            f"{key}: '{file}': its metadata name '{part.name[:200]}', which is not a part of sr_dist. Metadata never name "
            f"files of your own, because that would run them; give the run folder, whose recipe may"
        )
    return stated


def named_in_recipe(place: Path) -> tuple[str, ...]:
    """The names of the networks in a run folder's recipe, which may run files of your own; none for a weights file."""
    if not is_run(place):
        return ()
    tree = config.read(place / RECIPE)
    sections = [tree[kind] for kind in ("generator", "discriminator", "classifier") if isinstance(tree.get(kind), dict)]
    return tuple(str(section.get("name")) for section in sections)


def build_for(tensors: Tensors, make: Callable[[], nn.Module]) -> nn.Module:
    """A network for the tensors of a file. It is first built without memory, and refused where it needs more than there are.

    Twice as much is allowed, because networks may replace some of their layers while they are built.
    """
    values, count = 10_000_000 + 2 * sum(tensor.numel() for tensor in tensors.values()), 1000 + 2 * len(tensors)

    def count_down(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal values, count
        values, count = values - (0 if parameter is None else parameter.numel()), count - 1
        if values < 0 or count < 0:
            raise UserError(f"its metadata describe a larger network than its {len(tensors)} tensors are")

    counting = register_module_parameter_registration_hook(count_down)
    try:
        with torch.device("meta"):
            make()
    except NotImplementedError:  # some networks compute with tensors while they are built; they are counted as they grow
        values, count = 10_000_000 + 2 * sum(tensor.numel() for tensor in tensors.values()), 1000 + 2 * len(tensors)
        return make()
    except (RuntimeError, TypeError, OverflowError) as problem:
        raise UserError(f"its metadata describe a network that cannot be built: {first_line(problem)[:200]}") from None
    finally:
        counting.remove()
    return make()
