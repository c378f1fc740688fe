"""Networks out of files: finished runs, weights files of ours and of others become bare generators and classifiers. Reads files
only.

A weights file of ours is a `.safetensors` whose metadata says which generator it fits and for which scale, or which classifier
it fits, what that tells apart, and the size of its images; the EMA in every checkpoint is one. Of other files the generator is
recognised by its names (`layouts.py`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sr_dist.core import plugins
from sr_dist.core.errors import UserError
from sr_dist.core.plugins import PACKAGES
from sr_dist.models import layouts
from sr_dist.models.frozen_classifier import FrozenClassifier
from sr_dist.models.weights_files import Tensors, bare_names, read
from sr_dist.recipe.labels import Labels

METADATA = "sr_dist"


@dataclass(frozen=True)
class TrainedGenerator:
    """A trained generator, ready to use: fp32, in evaluation mode, on the CPU."""

    name: str
    step: int | None
    scale: int
    network: nn.Module
    file: Path
    generator: dict[str, Any]  # its section of a recipe, complete

    @property
    def channels(self) -> int:
        return int(self.generator.get("channels", 3))


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


def metadata(generator: dict[str, Any], scale: int) -> dict[str, str]:
    """What a generator's weights file says of itself."""
    return {METADATA: json.dumps({"generator": generator, "scale": scale})}


def classifier_metadata(classifier: dict[str, Any], labels: Labels, size: int | None) -> dict[str, str]:
    """What a classifier's weights file says of itself. How images are normalised is the network's own business."""
    said = {"classifier": classifier, "labels": {"kind": labels.kind, "names": list(labels.names)}, "size": size}
    return {METADATA: json.dumps(said)}


def is_run(path: Path) -> bool:
    return (path / "recipe.yaml").is_file()


def open_generator(path: str, key: str = "method", scale: int | None = None) -> TrainedGenerator:
    """The generator of a run folder (the EMA of its newest checkpoint) or of a weights file, ours or foreign.

    `scale` is for files that do not show theirs (SRCNN's).
    """
    place = Path(path)
    file = newest_weights(place, "generator.ema", key) if is_run(place) else place
    tensors, about = read(file, key)
    section, own_scale, tensors = described(tensors, about, file, key)
    if own_scale is None and scale is None:
        raise UserError(f"{key}: '{file}' is {section['name']}, whose tensors do not show the scale; give --scale=N")
    scale = own_scale or scale
    assert scale is not None
    try:
        section = complete(section, "generator")
        network = build(PACKAGES["generator"], section, scale, "generator")
    except UserError as mistake:
        raise UserError(f"{key}: '{file}' cannot be used: {mistake}") from None
    load_strictly(network, tensors, file, key)
    name, step = called(place, file)
    return TrainedGenerator(name, step, scale, network.eval().requires_grad_(False), file, section)


def called(place: Path, file: Path) -> tuple[str, int | None]:
    """Name and step of a run's generator (`gan`), of one of its checkpoints (`gan@1000`) or of any other file (its own name)."""
    if is_run(place):
        return place.resolve().name, int(file.parent.name)
    *_, run, checkpoints, step, _ = ["", "", "", *file.resolve().parts]
    if checkpoints == "checkpoints" and step.isdigit():
        return f"{run}@{int(step)}", int(step)
    return Path(file.name.removesuffix(".tar")).stem, None


def described(tensors: Tensors, about: dict[str, str], file: Path, key: str) -> tuple[dict[str, Any], int | None, Tensors]:
    """Generator section, scale and tensors under our names: from the metadata, or else from the names."""
    if METADATA in about:
        said = json.loads(about[METADATA])
        if "generator" not in said:
            raise UserError(f"{key}: '{file}' holds a classifier, not a generator")
        return said["generator"], int(said["scale"]), tensors
    found = layouts.recognise(bare_names(tensors, "generator"), file, key)
    return found.generator, found.scale, found.tensors


def open_classifier(path: str, key: str) -> FrozenClassifier:
    """The classifier of a run folder (its best checkpoint, where the run chose one, else its newest) or of a weights file."""
    place = Path(path)
    file = chosen_weights(place, key) if is_run(place) else place
    tensors, about = read(file, key)
    said = json.loads(about.get(METADATA, "{}"))
    if "classifier" not in said:
        raise UserError(f"{key}: '{file}' is no weights file of a classifier of sr_dist: it does not say what it tells apart")
    section = {**said["classifier"], **({"weights": "none"} if "weights" in said["classifier"] else {})}  # ours come instead
    try:
        network = build_classifier(section)
    except UserError as mistake:
        raise UserError(f"{key}: '{file}' cannot be used: {mistake}") from None
    load_strictly(network, tensors, file, key)
    name = place.resolve().name if is_run(place) else file.stem
    labels = Labels(said["labels"]["kind"], tuple(said["labels"]["names"]))
    return FrozenClassifier(network, name, file, labels, said["size"], int(section.get("channels", 3)))


def chosen_weights(run: Path, key: str) -> Path:
    """A classifier's weights in a run folder: the best by `keep.best`, as the newest checkpoint knows it, or the newest."""
    newest = newest_weights(run, "classifier.ema", key)
    best = json.loads((newest.parent / "state.json").read_text())["best"]
    chosen = run / "checkpoints" / f"{best['step']:07d}" / newest.name if best else newest
    return chosen if chosen.is_file() else newest


def newest_weights(run: Path, stem: str, key: str) -> Path:
    """The newest `checkpoints/*/<stem>.safetensors` of a run folder. Checkpoints are whole or absent."""
    folder = run / "checkpoints"
    steps = sorted((p for p in folder.glob("*") if p.name.isdigit()), key=lambda p: int(p.name))
    found = [p / f"{stem}.safetensors" for p in steps if (p / f"{stem}.safetensors").is_file()]
    if not found and steps:
        raise UserError(f"{key}: '{run}' is a run of another kind: its checkpoints have no {stem}.safetensors")
    if not found:
        raise UserError(f"{key}: the run '{run}' has no checkpoint yet")
    return found[-1]


@dataclass(frozen=True)
class Fit:
    """How tensors of a file and of a network go together, by name and shape."""

    matched: list[str]
    missing: list[str]  # the network has them, the file does not
    unexpected: list[str]  # the file has them, the network does not
    reshaped: list[str]  # both have them, in other shapes

    @property
    def whole(self) -> bool:
        return not (self.missing or self.unexpected or self.reshaped)

    def __str__(self) -> str:
        example = (self.missing or self.unexpected or self.reshaped or [""])[0]
        such = f" (such as '{example}')" if example else ""
        return (
            f"{len(self.missing)} tensors missing, {len(self.unexpected)} unexpected, {len(self.reshaped)} of another shape{such}"
        )


def fit(wanted: dict[str, Tensor], tensors: Tensors) -> Fit:
    common = sorted(wanted.keys() & tensors.keys())
    alike = [name for name in common if wanted[name].shape == tensors[name].shape]
    return Fit(
        alike, sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys()), sorted(set(common) - set(alike))
    )


def load_strictly(network: nn.Module, tensors: Tensors, file: Path, key: str) -> None:
    """Every tensor fits by name and shape, or a UserError that says how much did not."""
    found = fit(network.state_dict(), tensors)
    if not found.whole:
        raise UserError(f"{key}: '{file}' does not fit: {found}")
    network.load_state_dict(tensors)


def load_partially(network: nn.Module, tensors: Tensors, file: Path, key: str) -> str:
    """What fits is loaded and the rest stays as it was initialised: -> how much that was. Nothing at all is refused."""
    wanted = network.state_dict()
    found = fit(wanted, tensors)
    if not found.matched:
        raise UserError(f"{key}: '{file}' has nothing that fits: 0 of {len(wanted)} tensors matched, {found}")
    network.load_state_dict({**wanted, **{name: tensors[name] for name in found.matched}})
    share = sum(wanted[name].numel() for name in found.matched) / sum(value.numel() for value in wanted.values())
    return f"{len(found.matched)} of {len(wanted)} tensors matched ({share:.1%} of the values), {found}"


def start(network: nn.Module, section: dict[str, Any], path: str, kind: str, key: str, partial: bool = False) -> str:
    """Starting weights for a network of this section: -> a line for the log."""
    file = starting_file(path, kind, key)
    tensors, about = read(file, key)
    said: dict[str, Any] = {}
    if METADATA in about or not fit(network.state_dict(), tensors).whole:
        said, tensors = _fitted(network, tensors, about, file, kind, key, partial)
    if said and said["name"] != section["name"] and not partial:
        raise UserError(f"{key}: '{file}' holds {said['name']}, but {kind}.name is {section['name']}")
    tensors, head = with_own_head(network, tensors, section["outputs"]) if kind == "classifier" else (tensors, "")
    unlike = {name: value for name, value in said.items() if name in section and str(section[name]) != str(value)}
    note = "".join(f"; it was made with {name} {value}, not {section[name]}" for name, value in unlike.items()) + head
    if partial:
        return f"{kind} starts from {file}: {load_partially(network, tensors, file, key)}{note}"
    load_strictly(network, tensors, file, key)
    return f"{kind} starts from {file}{note}"


def with_own_head(network: nn.Module, tensors: Tensors, outputs: int) -> tuple[Tensors, str]:
    """Tensors with a row per output, of which the file has another number, stay as the network was initialised: -> all
    tensors, and words about it."""
    own = network.state_dict()
    head = [name for name in fit(own, tensors).reshaped if own[name].shape == (outputs, *tensors[name].shape[1:])]
    note = f"; its head ({', '.join(head)}) has another number of outputs and begins anew" if head else ""
    return {**tensors, **{name: own[name] for name in head}}, note


def _fitted(
    network: nn.Module, tensors: Tensors, about: dict[str, str], file: Path, kind: str, key: str, partial: bool
) -> tuple[dict[str, Any], Tensors]:
    """Whatever stands around or in place of our names is taken away: -> (what the file says of its generator, tensors)."""
    if kind == "classifier" and METADATA in about:
        said = json.loads(about[METADATA])
        if "classifier" not in said:
            raise UserError(f"{key}: '{file}' holds a generator, not a classifier")
        return said["classifier"], tensors
    if kind == "generator":
        try:
            said, _, ours = described(tensors, about, file, key)
            return said, ours
        except UserError:
            if not partial and not fit(network.state_dict(), bare_names(tensors, kind)).whole:
                raise
    return {}, bare_names(tensors, kind)


def starting_file(path: str, kind: str, key: str) -> Path:
    """The file with the weights to start from: a run's (the EMA, but for critics, which have none), or the file itself."""
    place = Path(path)
    if not is_run(place):
        return place
    if kind == "classifier":
        return chosen_weights(place, key)
    return newest_weights(place, "generator.ema" if kind == "generator" else kind, key)
