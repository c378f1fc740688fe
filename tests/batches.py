"""Batches for tests of losses."""

from __future__ import annotations

import torch
from torch import Tensor

from sr_dist.core.batch import Batch


def against(hr: Tensor, label: list[int] | None = None, **attributes: list[int]) -> Batch:
    """HR images with labels; LR is not used."""
    labels = torch.full((len(hr),), -1) if label is None else torch.tensor(label)
    values_by_name = {name: torch.tensor(values, dtype=torch.float32) for name, values in attributes.items()}
    return Batch(hr[..., ::2, ::2], hr, labels, tuple(map(str, range(len(hr)))), values_by_name, average=hr)
