"""Sample images of a run: LR | bicubic | SR | HR of the same images every time, by the EMA, and whole images by their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from sr_dist.core.lost_writes import LostWrites
from sr_dist.core.run_layout import SAMPLES
from sr_dist.data.image_pairs import ImagePairs
from sr_dist.evaluation.baselines import baseline
from sr_dist.evaluation.contact_sheet import contact_sheet, enlarge, save_png, to_pil
from sr_dist.evaluation.methods import SavedImages, image_path
from sr_dist.models.tiling import Upscale
from sr_dist.recipe.sections import Recipe

EMA = "ema"  # the method of a validation
COUNT, SIDE = 4, 160  # sample images, and the largest side of HR that is shown


class Pair(NamedTuple):
    name: str
    lr: Tensor  # (1, C, h, w)
    hr: Tensor  # (1, C, H, W)


@dataclass(frozen=True)
class WholeImages(SavedImages):
    """Writes SR of the first validation images as samples/STEP/IMAGE.png, or with several sets samples/STEP/SET/IMAGE.png.

    A rank writes its own images. A validation that is repeated writes them again."""

    images: frozenset[str] = frozenset()
    lost: LostWrites = field(default_factory=LostWrites)

    @classmethod
    def of(cls, recipe: Recipe, step: int, part: str, names: Sequence[str], lost: LostWrites) -> WholeImages | None:
        """`names`: all images of the set, in their order."""
        if not recipe.sample_images:
            return None
        folder = recipe.folder / SAMPLES / f"{step:07d}"
        return cls(folder, frozenset({EMA}), part, frozenset(names[: recipe.sample_images]), lost)

    def path(self, method: str, image: str) -> Path:
        return image_path(self.folder / self.part, image, "sample_images")

    def write(self, method: str, batch: ImagePairs, sr: Tensor) -> None:
        if method not in self.methods:
            return
        for image, pixels in zip(batch.names, sr.nan_to_num(), strict=True):
            if image in self.images:
                path = self.path(method, image)
                with self.lost.around(SAMPLES):
                    self.folder.parent.stat()  # a run folder that was removed does not come back
                    path.parent.mkdir(parents=True, exist_ok=True)
                    save_png(to_pil(pixels), path)


@dataclass(frozen=True)
class SampleSheet:
    step: int
    path: Path  # one file with all of them
    rows: dict[str, dict[str, Image.Image]]  # name of an image -> LR, bicubic, SR, HR
    images: int = 0  # seen in training by then


@torch.no_grad()
def draw_samples(recipe: Recipe, step: int, pairs: Sequence[Pair], upscale: Upscale, device: torch.device) -> SampleSheet:
    """Draws `samples/STEP.png`. The first rank calls, alone: the bare EMA needs no other rank."""
    scale = recipe.scale
    side = SIDE // scale * scale
    rows = {}
    for name, lr, hr in pairs[:COUNT]:
        hr, lr = hr[..., :side, :side], lr[..., : side // scale, : side // scale]
        sr, zoom = upscale(lr.to(device)), max(1, SIDE // max(hr.shape[-2:]))  # digits are too small to look at
        rows[name] = {
            "LR": enlarge(to_pil(lr[0]), scale * zoom),
            "bicubic": enlarge(to_pil(baseline("bicubic", scale)(lr)[0]), zoom),
            "SR": enlarge(to_pil(sr[0]), zoom),
            "HR": enlarge(to_pil(hr[0]), zoom),
        }
    path = recipe.folder / SAMPLES / f"{step:07d}.png"
    path.parent.mkdir(exist_ok=True)  # without parents: a run folder that was removed does not come back
    headed = [{f"SR, step {step}" if key == "SR" else key: image for key, image in row.items()} for row in rows.values()]
    contact_sheet(headed, path)
    return SampleSheet(step, path, rows)
