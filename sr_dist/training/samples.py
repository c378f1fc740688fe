"""Sample pictures of a run: LR | bicubic | SR | HR of the same images every time, by the EMA."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from sr_dist.core import ranks
from sr_dist.evaluation.baselines import baseline
from sr_dist.evaluation.contact_sheet import contact_sheet, enlarged, to_pil

if TYPE_CHECKING:
    from sr_dist.training.run import Run

COUNT, SIDE = 4, 160  # pictures, and the most pixels of HR that they show


@dataclass(frozen=True)
class Samples:
    step: int
    images: int  # seen in training by then
    sheet: Path  # all of them in one file
    views: dict[str, dict[str, Image.Image]]  # name of an image -> LR, bicubic, SR, HR


@torch.no_grad()
def draw_samples(run: Run) -> Samples | None:
    """Rank 0 draws, alone: the bare EMA needs nobody else."""
    if not ranks.is_first():
        return None
    scale, views = run.recipe.scale, {}
    side = SIDE // scale * scale
    for name, lr, hr in _pairs(run):
        hr, lr = hr[..., :side, :side], lr[..., : side // scale, : side // scale]
        sr, zoom = run.upscaler(lr.to(run.device)), max(1, SIDE // max(hr.shape[-2:]))  # digits are too small to look at
        views[name] = {
            "LR": enlarged(to_pil(lr[0]), scale * zoom),
            "bicubic": enlarged(to_pil(baseline("bicubic", scale)(lr)[0]), zoom),
            "SR": enlarged(to_pil(sr[0]), zoom),
            "HR": enlarged(to_pil(hr[0]), zoom),
        }
    path = run.recipe.folder / "samples" / f"{run.step:07d}.png"
    headed = [{f"SR, step {run.step}" if k == "SR" else k: v for k, v in row.items()} for row in views.values()]
    contact_sheet(headed, path)
    return Samples(run.step, run.step * run.recipe.data.batch, path, views)


def _pairs(run: Run) -> list[tuple[str, Tensor, Tensor]]:
    """Name, LR and HR of the first validation images, or the first of the training order where there are none."""
    if run.validation is None:
        return [(batch.keys[0], batch.lr, batch.hr) for batch in run.stream.preview(COUNT)]
    pairs: list[tuple[str, Tensor, Tensor]] = []
    for number in range(len(run.validation)):
        if len(pairs) >= COUNT:
            break
        batch = run.validation[number]
        if isinstance(batch, Exception):
            raise batch
        pairs += [(name, batch.lr[i : i + 1], batch.hr[i : i + 1]) for i, name in enumerate(batch.names)]
    return pairs[:COUNT]
