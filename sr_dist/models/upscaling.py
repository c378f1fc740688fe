"""From the words of `sr_dist.upscale` to enlarged pictures."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from sr_dist.commands import Upscaling
from sr_dist.core.errors import UserError
from sr_dist.core.resize import imresize
from sr_dist.data.folder_images import SUFFIXES
from sr_dist.models import image_files, trained
from sr_dist.models.image_files import Picture, Unreadable
from sr_dist.models.tiling import Upscale, for_any_colour, in_tiles
from sr_dist.models.trained import Restorer


def upscale(asked: Upscaling) -> bool:
    """Whether every picture was done. Those that cannot be read are said and the others done."""
    pairs = targets(asked)
    refuse_existing(pairs, asked.overwrite)
    restorer = trained.open_restorer(asked.source, "RUN_OR_WEIGHTS", asked.scale)
    device = chosen_device()
    network = for_any_colour(restorer.network.to(device), restorer.channels, restorer.scale)
    failed = 0
    for source, target in pairs:
        try:
            image_files.write(enlarged(image_files.read(source), network, restorer, asked, device), target)
        except Unreadable as problem:
            failed += 1
            print(f"not done: '{source}': {problem}", flush=True)
        except torch.OutOfMemoryError:
            failed += 1
            print(f"not done: '{source}': it needs more memory than '{device}' has; give --tile=256 or less", flush=True)
    done = len(pairs) - failed
    print(f"{done} of {len(pairs)} pictures enlarged by {restorer.scale} with {restorer.name}: {asked.output}")
    return not failed


def targets(asked: Upscaling) -> list[tuple[Path, Path]]:
    """Every picture and the file that it becomes. Two that differ in their suffix only both keep it: a.jpg.png."""
    source, out = Path(asked.input), Path(asked.output)
    suffix = f".{asked.format or 'png'}"
    if not source.is_dir():
        return [(source, out / f"{source.stem}{suffix}" if out.is_dir() else out)]
    inside = [p for p in sorted(source.rglob("*")) if p.suffix.lower() in SUFFIXES and p.is_file()]
    found = [p for p in inside if out == source or not p.is_relative_to(out)]
    if not found:
        raise UserError(f"INPUT: no images in '{source}' (looked for {' '.join(SUFFIXES)})")
    alike = Counter(p.with_suffix("") for p in found)
    names = [p.relative_to(source) for p in found]
    return [
        (p, out / (f"{name}{suffix}" if alike[p.with_suffix("")] > 1 else name.with_suffix(suffix)))
        for p, name in zip(found, names, strict=True)
    ]


def refuse_existing(pairs: list[tuple[Path, Path]], overwrite: bool) -> None:
    sources = {source.resolve() for source, _ in pairs}
    onto = [target for _, target in pairs if target.resolve() in sources]
    if onto:
        raise UserError(f"OUTPUT: '{onto[0]}' is one of the pictures that are read; name another place")
    there = [target for _, target in pairs if target.exists()]
    if there and not overwrite:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise UserError(f"OUTPUT: '{there[0]}'{more} would be overwritten; say --overwrite, or name another place")


def chosen_device() -> torch.device:
    cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("true", "1") or not torch.cuda.is_available()
    return torch.device("cpu" if cpu else "cuda")


def enlarged(picture: Picture, network: Upscale, restorer: Restorer, asked: Upscaling, device: torch.device) -> Picture:
    """The alpha channel, which is no photograph, is enlarged by bicubic interpolation."""

    def with_network(planes: Tensor) -> Tensor:
        return in_tiles(network, planes[None], restorer.scale, asked.tile, asked.overlap, device)[0]

    alpha = None if picture.alpha is None else imresize(picture.alpha.double(), restorer.scale).float()
    return Picture(with_network(picture.pixels), alpha, picture.bits, picture.profile)
