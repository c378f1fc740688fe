"""Sample pictures of a run: LR | bicubic | SR | HR of the same images every time, by the EMA."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sr_dist import ranks
from sr_dist.engine.run import Run
from sr_dist.eval.baselines import baseline
from sr_dist.eval.pictures import contact_sheet, enlarged, to_pil

COUNT, SIDE = 4, 160  # pictures, and the most pixels of HR that they show


@torch.no_grad()
def draw_samples(run: Run) -> Path | None:
    """Rank 0 draws, alone: the bare EMA needs nobody else."""
    if not ranks.is_first():
        return None
    scale, rows = run.recipe.scale, []
    for lr, hr in _pairs(run):
        side = SIDE // scale * scale
        hr, lr = hr[..., :side, :side], lr[..., : side // scale, : side // scale]
        sr = run.restore(lr.to(run.device))
        rows.append(
            {
                "LR": enlarged(to_pil(lr[0]), scale),
                "bicubic": to_pil(baseline("bicubic", scale)(lr)[0]),
                f"SR, step {run.step}": to_pil(sr[0]),
                "HR": to_pil(hr[0]),
            }
        )
    path = run.recipe.folder / "samples" / f"{run.step:07d}.png"
    contact_sheet(rows, path)
    return path


def _pairs(run: Run) -> list[tuple[Tensor, Tensor]]:
    """The first validation images, or the first of the training order where there are none."""
    if run.validation is None:
        return [(batch.lr, batch.hr) for batch in run.stream.preview(COUNT)]
    pairs: list[tuple[Tensor, Tensor]] = []
    for number in range(len(run.validation)):
        if len(pairs) >= COUNT:
            break
        batch = run.validation[number]
        if isinstance(batch, Exception):
            raise batch
        pairs += [(batch.lr[i : i + 1], batch.hr[i : i + 1]) for i in range(len(batch.names))]
    return pairs[:COUNT]
