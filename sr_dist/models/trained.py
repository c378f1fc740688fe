"""Trained networks: opens run folders and weights files, of sr_dist and of other projects, as generators and classifiers.

A weights file of sr_dist is a `.safetensors` with metadata: the generator and its scale, or the classifier with its labels and
image size. The EMA in every checkpoint is one. In other files the generator is recognized by its tensor names (`layouts.py`).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from sr_dist.core import plugins
from sr_dist.core.errors import UserError
from sr_dist.core.plugins import PACKAGES
from sr_dist.core.run_layout import STATE, checkpoint_folder, checkpoint_of, checkpoint_state, checkpoint_steps, is_run, run_id
from sr_dist.models import layouts, published, spandrel_files, verified, weights_files
from sr_dist.models.frozen_classifier import FrozenClassifier
from sr_dist.models.metadata import METADATA, build_for, named_in_recipe, read_metadata
from sr_dist.models.post_hoc_ema import one_of_both
from sr_dist.models.weights_files import Tensors, bare_names
from sr_dist.recipe import shipped
from sr_dist.recipe.labels import Labels


@dataclass(frozen=True)
class TrainedGenerator:
    """A trained generator: fp32, in evaluation mode, on the CPU."""

    name: str
    step: int | None
    scale: int
    network: nn.Module
    file: Path
    sha256: str  # of the file when it was opened: a training that goes on may have removed it since
    section: dict[str, Any]  # its recipe section, complete

    @property
    def channels(self) -> int:
        return int(self.section.get("channels", 3))


def read(file: Path, key: str) -> tuple[Tensors, dict[str, str]]:
    """Tensors under their names in the file, and the file's metadata. A file of a checkpoint must be as it was saved."""
    verified.check(file, key)
    tensors, metadata = weights_files.read(file, key)
    weights_files.check_tensors(tensors, file, key)
    return one_of_both(tensors), metadata


def build(package: str, section: dict[str, Any], scale: int, key: str) -> nn.Module:
    """A network from its section of a recipe."""
    options = dict(section)
    module, settings = plugins.resolve(package, options.pop("name"), options, key)
    return module.build(settings, scale)


def build_classifier(section: dict[str, Any]) -> nn.Module:
    """A classifier from its section of a recipe; it has no scale."""
    options = dict(section)
    module, settings = plugins.resolve(PACKAGES["classifier"], options.pop("name"), options, "classifier")
    return module.build(settings)


def complete(section: dict[str, Any], key: str) -> dict[str, Any]:
    """A generator's section with every option written out, so that two can be compared."""
    options = dict(section)
    name = options.pop("name")
    _, settings = plugins.resolve(PACKAGES["generator"], name, options, key)
    return {"name": name, **settings.model_dump(mode="json")}


class Weights(NamedTuple):
    """Where weights are."""

    place: Path  # the run folder, or the file
    file: Path


def locate(path: str, key: str, kind: str = "generator") -> Weights:
    """The file of a run folder, of a weights file, or of published weights by their name.

    Of a run it is the newest EMA, a classifier's best one, or the raw weights of a discriminator, which has none. A training may
    write another meanwhile, so ranks that share work get the answer of the first (`ranks.from_first`).
    """
    place = published.place(path, key)
    if not is_run(place):
        return Weights(place, place)
    if kind == "classifier":
        return Weights(place, best_weights(place, key))
    return Weights(place, newest_weights(place, "generator.ema" if kind == "generator" else kind, key))


def open_generator(source: str | Weights, key: str = "method", scale: int | None = None) -> TrainedGenerator:
    """The generator of a run folder (the EMA of its newest checkpoint), of a weights file, or of published weights.

    `scale` is for files that do not show theirs (SRCNN's).
    """
    place, file = source if isinstance(source, Weights) else locate(source, key)
    tensors, metadata = read(file, key)
    digest = verified.digest(file)
    section, own_scale, tensors = describe(tensors, metadata, file, key, named_in_recipe(place))
    if own_scale is None and scale is None:
        raise UserError(f"{key}: '{file}' is {section['name']}, whose tensors do not show the scale; give --scale=N")
    if own_scale and scale not in (None, own_scale):
        raise UserError(f"scale: {scale}, but {name_and_step(place, file)[0]} upscales by {own_scale}")
    scale = own_scale or scale
    assert scale is not None
    try:
        whole = section = complete(section, "generator")
        network = build_for(tensors, lambda: build(PACKAGES["generator"], whole, scale, "generator"))
    except UserError as mistake:
        raise UserError(f"{key}: '{file}' cannot be used: {mistake}") from None
    load_strictly(network, tensors, file, key)
    name, step = name_and_step(place, file)
    return TrainedGenerator(name, step, scale, network.eval().requires_grad_(False), file, digest, section)


def name_and_step(place: Path, file: Path) -> tuple[str, int | None]:
    """The name of a run's generator (`gan`), of one of its checkpoints (`gan@1000`) or of a file (its stem), and its step."""
    if is_run(place):
        return place.resolve().name, int(file.parent.name)
    if checkpoint := checkpoint_of(file):
        run, step = checkpoint
        return f"{run.name}@{step}", step
    return Path(file.name.removesuffix(".tar")).stem, None


def run_of(file: Path) -> str | None:
    """The identity of the run whose checkpoint has this file."""
    checkpoint = checkpoint_of(file)
    return run_id(checkpoint[0]) if checkpoint else None


class Description(NamedTuple):
    """A generator in a file: its recipe section, its scale if known, its tensors under our names."""

    section: dict[str, Any]
    scale: int | None
    tensors: Tensors


def describe(
    tensors: Tensors, metadata: dict[str, str], file: Path, key: str, trusted: Container[str] = ()
) -> Description:  # fmt: skip
    """From the metadata, or else from the tensor names. `trusted`: see `read_metadata`."""
    if METADATA in metadata:
        stated = read_metadata(metadata, file, key, trusted)
        if "generator" not in stated:
            raise UserError(f"{key}: '{file}' holds a classifier, not a generator")
        return Description(stated["generator"], int(stated["scale"]), tensors)
    bare = bare_names(tensors, "generator")
    try:
        foreign = layouts.recognize(bare, file, key)
    except UserError:
        if known := spandrel_files.recognize(bare):
            return Description(*known)
        raise
    return Description(foreign.generator, foreign.scale, foreign.tensors)


def open_classifier(source: str | Weights, key: str) -> FrozenClassifier:
    """The classifier of a run folder (its best checkpoint if the run recorded one, else its newest) or of a weights file."""
    place, file = source if isinstance(source, Weights) else locate(source, key, "classifier")
    tensors, metadata = read(file, key)
    digest = verified.digest(file)
    stated = read_metadata(metadata, file, key, named_in_recipe(place))
    if "classifier" not in stated:
        raise UserError(f"{key}: '{file}' is not a weights file of a classifier of sr_dist: it does not state its labels")
    section = {**stated["classifier"], **({"weights": "none"} if "weights" in stated["classifier"] else {})}  # loaded below
    try:
        network = build_for(tensors, lambda: build_classifier(section))
    except UserError as mistake:
        raise UserError(f"{key}: '{file}' cannot be used: {mistake}") from None
    load_strictly(network, tensors, file, key)
    name = place.resolve().name if is_run(place) else file.stem
    labels = Labels(stated["labels"]["kind"], tuple(stated["labels"]["names"]))
    return FrozenClassifier(network, name, file, labels, stated["size"], int(section.get("channels", 3)), digest)


def best_weights(run: Path, key: str) -> Path:
    """A classifier's weights in a run folder: the best by `keep.best`, as the newest checkpoint records it, or the newest."""
    newest = newest_weights(run, "classifier.ema", key)
    verified.check(newest.parent / STATE, key)
    best = checkpoint_state(newest.parent)["best"]
    file = checkpoint_folder(run, best["step"]) / newest.name if best else newest
    return file if file.is_file() else newest


def newest_weights(run: Path, stem: str, key: str) -> Path:
    """The newest `checkpoints/*/<stem>.safetensors` of a run folder. Checkpoints are complete or absent."""
    steps = checkpoint_steps(run)
    files = [checkpoint_folder(run, step) / f"{stem}.safetensors" for step in steps]
    existing = [file for file in files if file.is_file()]
    if not existing and steps:
        raise UserError(f"{key}: '{run}' is a run of another kind: its checkpoints have no {stem}.safetensors")
    if not existing:
        raise UserError(f"{key}: the run '{run}' has no checkpoint yet")
    return existing[-1]


@dataclass(frozen=True)
class TensorMatch:
    """How the tensors of a file and of a network match, by name and shape."""

    matched: list[str]
    missing: list[str]  # in the network, not in the file
    unexpected: list[str]  # in the file, not in the network
    reshaped: list[str]  # in both, with different shapes

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unexpected or self.reshaped)

    def __str__(self) -> str:
        example = (self.missing or self.unexpected or self.reshaped or [""])[0]
        such = f" (such as '{example}')" if example else ""
        return (
            f"{len(self.missing)} tensors missing, {len(self.unexpected)} unexpected, {len(self.reshaped)} of another shape{such}"
        )


def match_tensors(own: dict[str, Tensor], tensors: Tensors) -> TensorMatch:
    common = sorted(own.keys() & tensors.keys())
    matched = [name for name in common if own[name].shape == tensors[name].shape]
    return TensorMatch(
        matched, sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys()), sorted(set(common) - set(matched))
    )


def load_strictly(network: nn.Module, tensors: Tensors, file: Path, key: str) -> None:
    """Every tensor must match by name and shape; the error counts those that do not."""
    own = network.state_dict()
    match = match_tensors(own, tensors)
    if not match.complete:
        raise UserError(f"{key}: '{file}' does not fit: {match}")
    weights_files.check_values(own, tensors, file, key)
    network.load_state_dict(tensors)


def load_partially(network: nn.Module, tensors: Tensors, file: Path, key: str) -> str:
    """Loads the tensors that match and leaves the others as initialized: -> how many matched. Refuses a file without any."""
    own = network.state_dict()
    match = match_tensors(own, tensors)
    if not match.matched:
        raise UserError(f"{key}: '{file}' has nothing that fits: 0 of {len(own)} tensors matched, {match}")
    fitting = {name: tensors[name] for name in match.matched}
    weights_files.check_values(own, fitting, file, key)
    network.load_state_dict({**own, **fitting})
    share = sum(own[name].numel() for name in match.matched) / sum(value.numel() for value in own.values())
    return f"{len(match.matched)} of {len(own)} tensors matched ({share:.1%} of the values), {match}"


def load_starting_weights(
    network: nn.Module, section: dict[str, Any], path: str, kind: str, key: str, partial: bool = False
) -> str:
    """Loads starting weights into a network of this section: -> a line for the log."""
    file = locate(path, key, kind).file
    stated, scale, tensors = _starting_tensors(network, file, kind, key, partial, (section["name"],))
    auto = "; or let it be taken from the file: --generator=auto" if kind == "generator" else ""
    if stated and stated["name"] != section["name"] and not partial:
        raise UserError(f"{key}: '{file}' holds {stated['name']}, but {kind}.name is {section['name']}{auto}")
    tensors, head = with_own_head(network, tensors, section["outputs"]) if kind == "classifier" else (tensors, "")
    different = {name: value for name, value in stated.items() if name in section and str(section[name]) != str(value)}
    note = "".join(f"; it was made with {name} {value}, not {section[name]}" for name, value in different.items()) + head
    if partial:
        return f"{kind} starts from {file}: {load_partially(network, tensors, file, key)}{note}"
    match = match_tensors(network.state_dict(), tensors)
    own = getattr(network, "factor", getattr(network, "scale", scale))  # a network of spandrel may have its own `scale`
    if scale and not match.complete and scale != own:
        other = shipped.of_scale(f"rrdb_psnr_x{own}", scale) if section["name"] == "rrdb" else ""
        raise UserError(f"{key}: '{file}' does not fit: it enlarges by {scale}, and the recipe's scale is {own}{note}{other}")
    if different and not match.complete:
        raise UserError(f"{key}: '{file}' does not fit: {match}{note}; paste {flags(kind, different)}{auto}")
    load_strictly(network, tensors, file, key)
    return f"{kind} starts from {file}{note}"


def flags(kind: str, options: dict[str, Any]) -> str:
    """Options of a network as words of a command line."""
    words = (f"--{kind}.{name}={json.dumps(value) if isinstance(value, list) else value}" for name, value in options.items())
    return " ".join(shlex.quote(word) for word in words)


def with_own_head(network: nn.Module, tensors: Tensors, outputs: int) -> tuple[Tensors, str]:
    """Replaces tensors with another number of outputs by the network's initial ones: -> all tensors, and a note about it."""
    own = network.state_dict()
    head = [name for name in match_tensors(own, tensors).reshaped if own[name].shape == (outputs, *tensors[name].shape[1:])]
    note = f"; its head ({', '.join(head)}) has another number of outputs and begins anew" if head else ""
    return {**tensors, **{name: own[name] for name in head}}, note


def _starting_tensors(
    network: nn.Module, file: Path, kind: str, key: str, partial: bool, trusted: Container[str]
) -> Description:  # fmt: skip
    """The section that the file states, if any, and its tensors under our names. The section is compared, never imported."""
    tensors, metadata = read(file, key)
    if METADATA not in metadata and match_tensors(network.state_dict(), tensors).complete:
        return Description({}, None, tensors)
    if kind == "classifier" and METADATA in metadata:
        stated = read_metadata(metadata, file, key, trusted)
        if "classifier" not in stated:
            raise UserError(f"{key}: '{file}' holds a generator, not a classifier")
        return Description(stated["classifier"], None, tensors)
    if kind == "generator":
        try:
            return describe(tensors, metadata, file, key, trusted)
        except UserError:
            if not partial and not match_tensors(network.state_dict(), bare_names(tensors, kind)).complete:
                raise
    return Description({}, None, bare_names(tensors, kind))
