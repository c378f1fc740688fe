"""Networks out of files: finished runs and weights files become bare generators. Reads files only.

A weights file of ours is a `.safetensors` whose metadata says which generator it fits and for which scale; the EMA in
every checkpoint is one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sr_dist import plugins
from sr_dist.errors import UserError, nearest

METADATA = "sr_dist"
GENERATORS = "sr_dist.models.generators"


@dataclass(frozen=True)
class Restorer:
    """A trained generator, ready to use: fp32, in evaluation mode, on the CPU."""

    name: str
    step: int | None
    scale: int
    network: nn.Module
    file: Path


def build(package: str, section: dict[str, Any], scale: int, key: str) -> nn.Module:
    """A network from its section of a recipe."""
    options = dict(section)
    module, settings = plugins.resolve(package, options.pop("name"), options, key)
    return module.build(settings, scale)


def metadata(generator: dict[str, Any], scale: int) -> dict[str, str]:
    """What a weights file says of itself."""
    return {METADATA: json.dumps({"generator": generator, "scale": scale})}


def is_run(path: Path) -> bool:
    return (path / "recipe.yaml").is_file()


def open_restorer(path: str, key: str = "method") -> Restorer:
    """The generator of a run folder (the EMA of its newest checkpoint) or of a weights file."""
    place = Path(path)
    file = newest_weights(place, "generator.ema", key) if is_run(place) else place
    tensors, about = read(file, key)
    if METADATA not in about:
        raise UserError(f"{key}: '{file}' does not say which generator it fits; weights files of sr_dist do, in their metadata")
    said = json.loads(about[METADATA])
    network = build(GENERATORS, said["generator"], int(said["scale"]), key)
    load_strictly(network, tensors, file, key)
    step = int(file.parent.name) if is_run(place) else None
    return Restorer(
        place.resolve().name if is_run(place) else file.stem, step, int(said["scale"]), network.eval().requires_grad_(False), file
    )


def newest_weights(run: Path, stem: str, key: str) -> Path:
    """The newest `checkpoints/*/<stem>.safetensors` of a run folder. Checkpoints are whole or absent."""
    folder = run / "checkpoints"
    steps = sorted((p for p in folder.glob("*") if p.name.isdigit()), key=lambda p: int(p.name))
    found = [p / f"{stem}.safetensors" for p in steps if (p / f"{stem}.safetensors").is_file()]
    if not found:
        raise UserError(f"{key}: the run '{run}' has no checkpoint with {stem}.safetensors yet")
    return found[-1]


def read(file: Path, key: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a `.safetensors` file."""
    from safetensors import SafetensorError, safe_open

    if file.is_dir():
        raise UserError(f"{key}: '{file}' is a folder, but not a run's (it has no recipe.yaml)")
    if not file.is_file():
        near = [str(p) for p in file.parent.iterdir()] if file.parent.is_dir() else []
        raise UserError(f"{key}: no run folder or weights file '{file}'{nearest(str(file), near)}")
    try:
        with safe_open(file, "pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as problem:
        raise UserError(f"{key}: '{file}' is no whole .safetensors file: {problem}") from None


def load_strictly(network: nn.Module, tensors: dict[str, Tensor], file: Path, key: str) -> None:
    """Every tensor fits by name and shape, or a UserError that says how much did not."""
    wanted = network.state_dict()
    missing, unexpected = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    shapes = [name for name in wanted.keys() & tensors.keys() if wanted[name].shape != tensors[name].shape]
    if missing or unexpected or shapes:
        example = (missing or unexpected or sorted(shapes))[0]
        raise UserError(
            f"{key}: '{file}' does not fit: {len(missing)} tensors missing, {len(unexpected)} unexpected, "
            f"{len(shapes)} of another shape (such as '{example}')"
        )
    network.load_state_dict(tensors)


def initial(path: str, kind: str, key: str) -> tuple[dict[str, Tensor], Path]:
    """Weights to start from: a run's (the EMA for generators) or a file's."""
    place = Path(path)
    file = newest_weights(place, "generator.ema" if kind == "generator" else kind, key) if is_run(place) else place
    return read(file, key)[0], file
