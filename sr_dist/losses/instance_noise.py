"""Instance noise (Sonderby et al. 2017): the discriminator sees images with noise, so that it cannot be sure.

The noise is of the samples' keys, the step, the phase and the number of the pass: the same on any rank, and after resuming.
"""

from __future__ import annotations

import hashlib
from typing import Any, cast

import torch
from torch import Tensor, nn

from sr_dist.core.batch import Batch, DiscriminatorOutput
from sr_dist.core.keyed_random import Draws


class Noisy:
    """A discriminator of images with noise of this deviation."""

    def __init__(self, network: nn.Module, deviation: float, batch: Batch, phase: str) -> None:
        self._network, self._deviation, self._batch, self._phase, self._passes = network, deviation, batch, phase, 0

    def __call__(self, images: Tensor) -> DiscriminatorOutput:
        self._passes += 1
        output = self._network(images + self._deviation * self._noise(images))
        return cast(DiscriminatorOutput, output)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def _noise(self, images: Tensor) -> Tensor:
        keys = self._batch.keys or tuple(map(str, range(len(self._batch))))  # a batch of a benchmark has none
        place = f"{self._batch.step} {self._phase} {self._passes}"
        names = [f"{place} {i // len(keys)} {keys[i % len(keys)]}" for i in range(len(images))]
        digests = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names]
        seeds = torch.tensor([int.from_bytes(digest, "little", signed=True) for digest in digests])
        return Draws(seeds.to(images.device)).normal(*images.shape[1:]).to(images.dtype)
