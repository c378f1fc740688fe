"""Sample images of a run: LR | bicubic | SR | HR of the same images every time, by the EMA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from sr_dist.core.run_layout import SAMPLES
from sr_dist.evaluation.baselines import baseline
from sr_dist.evaluation.contact_sheet import contact_sheet, enlarge, to_pil
from sr_dist.models.tiling import Upscale
from sr_dist.recipe.sections import Recipe

COUNT, SIDE = 4, 160  # sample images, and the largest side of HR that is shown


class Pair(NamedTuple):
    name: str
    lr: Tensor  # (1, C, h, w)
    hr: Tensor  # (1, C, H, W)


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
