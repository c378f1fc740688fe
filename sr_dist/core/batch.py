"""What networks, losses and objectives exchange.

Shapes:  B batch, C channels, h w low-resolution size, H W = scale times it, K classes.
Images:  float in [0, 1], RGB or one grey channel, at every module boundary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one rank, on its device."""

    lr: Tensor  # (B, C, h, w)
    hr: Tensor  # (B, C, H, W)
    label: Tensor  # (B,) class numbers; -1 where a sample has none
    keys: tuple[str, ...]  # names of the samples
    attributes: Mapping[str, Tensor] = field(default_factory=dict)  # by name: (B,) of 0 and 1
    step: int = 0  # of the run, counted from 1
    share: float = 1.0  # of the global batch: its images over those of all micro-batches of all ranks
    seeds: Tensor | None = None  # (B,) random bits of each sample in its epoch; None in a batch that no loader made
    average: Tensor | None = None  # (B, C, H, W): sr of the averaged generator (EMA), for terms of the loss that read it

    def __len__(self) -> int:
        return len(self.hr)


class DiscriminatorOutput(NamedTuple):
    """The logits of a discriminator. Large means real."""

    logits: Tensor  # (B,) for whole images, (B, h, w) for patches or pixels
    class_logits: Tensor | None = None  # (B, K), or None without a class head


class Reading(NamedTuple):
    """A value that a loss reports beside its terms: it is logged under its own name and not trained on."""

    value: Tensor  # a mean over the micro-batch


Terms = dict[str, Tensor | Reading]  # of a loss: weighted terms, which are summed, and readings
