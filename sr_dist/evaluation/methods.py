"""The METHODs of an evaluation: baselines, trained networks, and pictures that were made elsewhere."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sr_dist.core import ranks
from sr_dist.core.errors import UserError
from sr_dist.core.outputs import write_output
from sr_dist.core.resize import rounded
from sr_dist.data.folder_images import read_image
from sr_dist.data.image_pairs import Batches, ImagePairs
from sr_dist.evaluation.baselines import Upscale, baseline
from sr_dist.evaluation.classifiers.classifier_answers import ORIGINAL
from sr_dist.evaluation.contact_sheet import png, to_pil
from sr_dist.evaluation.picture_places import fitting
from sr_dist.evaluation.pictures import Pictures
from sr_dist.evaluation.presets import BASELINES
from sr_dist.evaluation.words import MethodWord
from sr_dist.models import trained
from sr_dist.models.tiling import adapt_channels
from sr_dist.models.trained import TrainedGenerator

Method = Upscale | Pictures
Methods = dict[str, Method]  # by name, baselines first
Sources = dict[str, dict[str, Any]]  # of the methods that are no baselines


def restored(method: Method, batch: ImagePairs, device: torch.device) -> Tensor:
    """(B, 3, H, W) as large as HR: what a method makes of LR, or what was made elsewhere."""
    if isinstance(method, Pictures):
        return method.of(batch).to(device)
    sr = method(batch.lr.to(device))
    if batch.corner is None:
        return sr
    (top, left), (height, width) = batch.corner, batch.hr.shape[-2:]
    return sr[..., top : top + height, left : left + width]


def open_generators(words: Sequence[MethodWord], scale: int | None) -> dict[str, TrainedGenerator]:
    """The trained networks by their words. All ranks must call."""
    networks = [word for word in words if not word.is_baseline and not word.is_pictures]
    located = ranks.from_first(lambda: [trained.locate(word.path, "METHOD") for word in networks])
    generators = {}
    for word, weights in zip(networks, located, strict=True):
        generator = trained.open_generator(weights, "METHOD", scale)
        generators[word.text] = replace(generator, name=word.name or generator.name)
    return generators


def open_methods(
    words: Sequence[MethodWord], generators: Mapping[str, TrainedGenerator], batches: Batches, crop: bool | None, part: str = ""
) -> tuple[list[TrainedGenerator | Pictures], Batches]:
    """The methods of one set of images, and the images as its pictures can be compared with them.

    `part`: the name of the set. Pictures lie in a folder of this name, if there is one.
    """
    opened: list[TrainedGenerator | Pictures] = []
    for word in words:
        if word.is_pictures:
            folder, inside = Path(word.path), Path(word.path) / part
            name = word.name or Path(os.path.abspath(folder)).name  # of the folder itself, where it is a link
            opened.append(Pictures(name, inside if inside.is_dir() else folder, batches.images.names))
        elif not word.is_baseline:
            opened.append(generators[word.text])
    return opened, fitting(batches, [one for one in opened if isinstance(one, Pictures)], crop)


def named_methods(opened: Sequence[TrainedGenerator | Pictures], scale: int, device: torch.device) -> tuple[Methods, Sources]:
    """(name -> method, baselines first; name -> source of the others). All ranks must call."""
    methods: Methods = {name: baseline(name, scale) for name in BASELINES}
    sources: Sources = {}
    for one in opened:
        name = unique_name(one.name, {*methods, ORIGINAL})
        if isinstance(one, Pictures):
            methods[name], sources[name] = one, one.source()
        else:
            methods[name], sources[name] = upscaler(one, device), source(one)
    return methods, sources


def upscaler(generator: TrainedGenerator, device: torch.device) -> Upscale:
    """The network itself moves to the device, so that sets of images share it."""
    return adapt_channels(generator.network.to(device).eval(), generator.channels, generator.scale)


def source(generator: TrainedGenerator) -> dict[str, Any]:
    return {
        "weights": str(generator.file),
        "sha256": generator.sha256,
        "step": generator.step,
        **({"run_id": run} if (run := trained.run_of(generator.file)) else {}),
        "parameters": sum(p.numel() for p in generator.network.parameters()),
    }


def unique_name(name: str, taken: Collection[str]) -> str:
    """Numbers a name that is taken: two runs in different folders may have the same name."""
    return name if name not in taken else next(f"{name} ({i})" for i in range(2, 1000) if f"{name} ({i})" not in taken)


def common_scale(requested: int | None, generators: Sequence[TrainedGenerator]) -> int:
    scales = {generator.scale: generator.name for generator in generators}
    if len(scales) > 1:
        raise UserError(f"METHOD: different scales: {', '.join(f'{name} x{scale}' for scale, name in scales.items())}")
    if not scales and requested is None:
        raise UserError("scale: no METHOD has a scale of its own; give --scale=N")
    return requested or next(iter(scales))


def image_path(folder: Path, image: str, key: str) -> Path:
    """FOLDER/IMAGE.png. `key` is the option that asks for the file."""
    path = folder / f"{image}.png"
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{key}: the image '{image}' would be written outside '{folder}'")
    return path


@dataclass(frozen=True)
class SavedImages:
    """Writes what methods made as FOLDER/METHOD/IMAGE.png, 8 bits. A file with other pixels is never replaced."""

    folder: Path
    methods: frozenset[str]
    part: str = ""  # the name of the set, a folder between METHOD and IMAGE

    def path(self, method: str, image: str) -> Path:
        return image_path(self.folder / method / self.part, image, "save_images")

    def write(self, method: str, batch: ImagePairs, sr: Tensor) -> None:
        if method not in self.methods:
            return
        for image, pixels in zip(batch.names, rounded(sr.double().nan_to_num().clamp(0, 1)), strict=True):
            path = self.path(method, image)
            if not path.exists():
                write_output(path, png(to_pil(pixels)), "save_images")
            elif not torch.equal(read_image(path), (pixels * 255).round().byte().cpu()):
                raise UserError(f"save_images: '{path}' is another picture; name another folder")

    def has(self, facts: Mapping[str, Any]) -> bool:
        """Whether the images of a batch with these facts were written into this folder and are there."""
        images = {row["image"] for row in facts["rows"]}
        return facts.get("saved") == self.mark() and all(
            self.path(method, image).is_file() for method in self.methods for image in images
        )

    def mark(self) -> str:
        return str(self.folder.resolve())
