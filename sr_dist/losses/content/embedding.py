"""Distance in the space of any embedding network, such as CLIP's image encoder: what the digits study asks for.

    L = E[1 - cos(e(sr), t)]

t is e(hr), or with `texts: FILE.json` the vector of the image's class, such as CLIP's of "a photograph of a {class}". The file is
an object {class: [numbers]} in the order of the shards' classes. Images without a class (-1) then add nothing.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sr_dist.core.batch import Batch
from sr_dist.core.config import OptionalPositive, OptionalText, Settings
from sr_dist.core.contracts import ContentTerm
from sr_dist.core.errors import UserError, first_line
from sr_dist.core.json_text import read_json
from sr_dist.core.precision import without_autocast
from sr_dist.models import torchscript
from sr_dist.recipe.labels import LabelNames

KEY = "objective.content.embedding"


class Config(Settings):
    model: str
    """A TorchScript file, (B, 3, H, W) in [0, 1] -> (B, width), which normalizes inside; it runs code."""
    size: OptionalPositive = None
    """The side of the square images that the network takes; left out, it takes images as they are."""
    texts: OptionalText = None
    """A JSON file with a vector per class, in place of the embedding of HR."""


def build(config: Config) -> ContentTerm:
    return EmbeddingDistance(config)


def check_labels(config: Config, available: LabelNames) -> None:
    if config.texts and tuple(_vectors(config.texts)) != available.classes:
        raise UserError(
            f"{KEY}.texts: '{config.texts}' has other classes than the shards in '{available.source}', or another order; it "
            f"needs {', '.join(available.classes[:5]) or 'classes, which these shards do not have'}"
        )


class EmbeddingDistance(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.network = config, torchscript.load(Path(config.model), f"{KEY}.model")
        self.eval().requires_grad_(False)
        self.vectors: Tensor | None
        vectors = torch.tensor(list(_vectors(config.texts).values())) if config.texts else None
        self.register_buffer("vectors", vectors, persistent=False)

    def train(self, mode: bool = True) -> EmbeddingDistance:
        return super().train(False)  # always frozen

    def forward(self, sr: Tensor, batch: Batch) -> Tensor:
        with without_autocast(sr):
            own = self._embed(sr)
            if self.vectors is None:
                with torch.no_grad():
                    target = self._embed(batch.hr)
                return (1 - F.cosine_similarity(own, target)).mean()
            if self.vectors.shape[1] != own.shape[1]:
                raise UserError(f"{KEY}.texts: its vectors have {self.vectors.shape[1]} numbers, those of images {own.shape[1]}")
            known = batch.label >= 0
            distance = 1 - F.cosine_similarity(own, self.vectors[batch.label.clamp(min=0)])
            return torch.where(known, distance, 0.0).mean()

    def _embed(self, images: Tensor) -> Tensor:
        images = images.float().expand(-1, 3, -1, -1)
        if self.config.size:
            images = F.interpolate(images, (self.config.size,) * 2, mode="bicubic", antialias=True)
        rows = self.network(images)
        torchscript.check_rows(rows, images, f"{KEY}.model: '{self.config.model}'")
        return rows


def _vectors(path: str) -> dict[str, list[float]]:
    try:
        vectors = read_json(Path(path))
        rows = {str(name): [float(number) for number in row] for name, row in vectors.items()}
    except (OSError, ValueError, TypeError, AttributeError) as problem:
        raise UserError(f"{KEY}.texts: '{path}' is not an object {{class: [numbers]}}: {first_line(problem)}") from None
    widths = {len(row) for row in rows.values()}
    if len(widths) != 1 or 0 in widths:
        raise UserError(f"{KEY}.texts: '{path}' needs vectors of one width; it has {sorted(widths) or 'none'}")
    return rows
