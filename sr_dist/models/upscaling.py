"""Enlarges image files with a trained network."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sr_dist.core import launch_env
from sr_dist.core.errors import UserError
from sr_dist.core.files import IMAGE_SUFFIXES, images_below
from sr_dist.core.outputs import write_output
from sr_dist.core.progress import Progress
from sr_dist.core.resize import imresize
from sr_dist.models import image_files, trained
from sr_dist.models.image_files import ImageFile, ImageFileError
from sr_dist.models.tiling import adapt_channels, upscale_in_tiles
from sr_dist.models.trained import TrainedGenerator

Pairs = list[tuple[Path, Path]]  # (image to read, image to write)


@dataclass(frozen=True)
class Tiles:
    size: int | None = None  # pixels of LR; None: the whole image at once
    overlap: int = 32


class Enlarged(NamedTuple):
    done: int  # images that succeeded
    scale: int
    generator: str


def upscale(source: str, pairs: Pairs, tiles: Tiles, scale: int | None = None) -> Enlarged:
    """Enlarges every image with the generator of a run or a weights file. Failures are printed."""
    generator = trained.open_generator(source, "RUN_OR_WEIGHTS", scale)
    device = torch.device("cuda" if launch_env.uses_cuda() else "cpu")
    network = adapt_channels(generator.network.to(device), generator.channels, generator.scale)

    def enlarged_planes(planes: Tensor) -> Tensor:
        return upscale_in_tiles(network, planes[None], generator.scale, tiles.size, tiles.overlap, device)[0]

    failed = 0
    with Progress(len(pairs)) as progress:
        for path, target in pairs:
            try:
                image = image_files.read(path)
                large = ImageFile(enlarged_planes(image.pixels), _alpha(image, generator), image.bits, image.profile)
                write_output(target, image_files.encode(large, target.suffix), "OUTPUT")
            except ImageFileError as problem:
                failed += 1
                progress.print(f"failed: '{path}': {problem}")
            except torch.OutOfMemoryError:
                failed += 1
                progress.print(f"failed: '{path}': it needs more memory than '{device}' has; give --tile=256 or less")
            progress.advance()
    return Enlarged(len(pairs) - failed, generator.scale, generator.name)


def _alpha(image: ImageFile, generator: TrainedGenerator) -> Tensor | None:
    """Upscales the alpha channel with bicubic interpolation, because networks are trained on photographs."""
    return None if image.alpha is None else imresize(image.alpha.double(), generator.scale).float()


def targets(source: Path, out: Path, suffix: str) -> Pairs:
    """Every image and the file to write. Two that differ only in their suffix both keep it: a.jpg.png."""
    if not source.is_dir():
        return [(source, out / f"{source.stem}.{suffix}" if out.is_dir() else out)]
    root, place = source.resolve(), out.resolve()
    images = [p for p in images_below(source) if place == root or not (root / p.relative_to(source)).is_relative_to(place)]
    if not images:
        raise UserError(f"INPUT: no images in '{source}' (looked for {' '.join(IMAGE_SUFFIXES)})")
    alike = Counter(p.with_suffix("") for p in images)
    names = [p.relative_to(source) for p in images]
    return [
        (p, out / (f"{name}.{suffix}" if alike[p.with_suffix("")] > 1 else name.with_suffix(f".{suffix}")))
        for p, name in zip(images, names, strict=True)
    ]


def refuse_collisions(pairs: Pairs) -> None:
    """Refuses images of which one would be written over another, or into the place of another's folder."""
    sources = {target: source for source, target in pairs}  # the last one of each target
    for source, target in pairs:
        above = next((folder for folder in target.parents if folder in sources), None)
        if sources[target] != source or above:
            other = sources[above or target]
            raise UserError(f"INPUT: '{source}' and '{other}' cannot both be enlarged to '{above or target}'; rename one of them")


def refuse_existing(pairs: Pairs, overwrite: bool) -> None:
    refuse_collisions(pairs)
    sources = {source.resolve() for source, _ in pairs}
    onto = [target for _, target in pairs if target.resolve() in sources]
    if onto:
        raise UserError(f"OUTPUT: '{onto[0]}' is one of the images that are read; name another place")
    existing = [target for _, target in pairs if target.exists()]
    if existing and not overwrite:
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise UserError(f"OUTPUT: '{existing[0]}'{more} would be overwritten; say --overwrite, or name another place")
