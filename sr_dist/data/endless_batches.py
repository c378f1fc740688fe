"""Shards as endless batches of uint8 crops for loops of one's own, from the reader of training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sr_dist.core import config
from sr_dist.core.errors import UserError, in_python
from sr_dist.data.data_checks import check_shards
from sr_dist.data.degradations import identity
from sr_dist.data.loader import Loader, LoaderConfig
from sr_dist.data.remote.cache import cache_of
from sr_dist.data.remote.sources import DEFAULT_GB, open_shards
from sr_dist.recipe.sections import Data

ENDLESS = 2**40  # steps
KEYS = ("small", "on_corrupt", "select", "balance", "split", "window")  # of a recipe's `data` that change crops of HR


class Shards:
    """A folder of shards, a brace pattern or a URL."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._shards = open_shards(self.path, "path", cache_of(None, DEFAULT_GB))

    def __len__(self) -> int:
        """The number of samples."""
        return self._shards.manifest.samples

    def __repr__(self) -> str:
        return f"<Shards '{self.path}': {len(self)} samples>"

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self._shards.manifest.classes)

    def batches(
        self, crop: int = 96, batch: int = 64, workers: int = 1, *, seed: int = 0, channels: Literal[1, 3] = 3, **data: Any
    ) -> Iterator[Tensor]:
        """Yields (batch, channels, crop, crop) uint8 for ever: random crops of HR, every sample once per epoch, in a new order.

        `data` are further keys of a recipe's `data` section: small, on_corrupt, select, balance, split (its first part), window.
        Under a launcher every rank gets its part of a batch.
        """
        if unused := [key for key in data if key in Data.model_fields and key not in KEYS]:
            raise UserError(f"{unused[0]}: changes nothing here; batches of uint8 crops take {', '.join(KEYS)}")
        if channels not in (1, 3):
            raise UserError(f"channels: {channels!r}; it is 3, or 1 for grey")
        if crop is None:
            raise UserError("crop: None; batches have crops of one size, such as 96")
        scale = self._shards.manifest.scale or 1
        with in_python("data"):
            options = config.typed(Data, {"train": self.path, "crop": crop, "batch": batch, "workers": workers, **data}, "data")
            check_shards(self.path, self._shards, options, scale)
        return self._batches(LoaderConfig(options, seed, scale, accumulate=1, steps=ENDLESS, channels=channels))

    def _batches(self, settings: LoaderConfig) -> Iterator[Tensor]:
        unused = identity.build(identity.Config(), 1)  # LR is not made
        loader = Loader([self._shards], settings, unused, torch.device("cpu"))
        try:
            for _, (crops,) in loader.crop_steps(1):
                yield crops.hr.clone(memory_format=torch.contiguous_format)  # workers reuse the memory of the crops
        finally:
            loader.close()
