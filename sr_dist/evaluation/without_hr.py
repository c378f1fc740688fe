"""Evaluation without HR: LR and what methods make of it, by metrics that need no reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sr_dist.core.errors import UserError
from sr_dist.core.files import IMAGE_SUFFIXES, images_below
from sr_dist.data.folder_images import ImageFiles, names_below
from sr_dist.data.image_pairs import Batches
from sr_dist.evaluation.metric_set import import_metrics, needs_reference


class LRBatches(Batches):
    """A folder of LR. `hr` has the size of HR and no values."""

    has_hr = False

    def notes(self) -> list[str]:
        return ["without HR: only metrics that need no reference"]

    def stored_size(self, i: int) -> tuple[int, int]:
        return self.full_size(i)

    def full_size(self, i: int) -> tuple[int, int]:
        height, width, _ = self.images.shape(i)
        return height * self.scale, width * self.scale

    def _pair(self, i: int) -> tuple[Tensor, Tensor, int]:
        lr8, _, label = self.images.load(i)
        lr = (lr8.to(torch.float64) / 255).float()
        return lr, torch.full((), torch.nan).expand(3, *self.full_size(i)), label


def lr_images(folder: str, limit: int | None) -> ImageFiles:
    files = images_below(Path(folder))[:limit] if Path(folder).is_dir() else []
    if not files:
        raise UserError(f"lr: no images in '{folder}' (looked for {' '.join(IMAGE_SUFFIXES)})")
    return ImageFiles(files, names_below(Path(folder), files), [])


def without_reference(names: Sequence[str], all_of_them: bool) -> tuple[str, ...]:
    """The metrics that need no HR. Refuses others that were requested, and having none."""
    others = [name for name, metric in zip(names, import_metrics(names), strict=True) if needs_reference(metric)]
    if others and not all_of_them:
        raise UserError(f"metrics: {', '.join(others)} compares with HR, and --lr alone has none; give --data=HR")
    if len(others) == len(names):
        raise UserError(
            "metrics: all metrics compare with HR, and --lr alone has none; name one of yours that states NO_REFERENCE = True"
        )
    return tuple(name for name in names if name not in others)
