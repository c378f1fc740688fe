"""Adversarial losses as functions of logits, means over the batch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def says_real(logits: Tensor) -> Tensor:
    """E[-log sigmoid(C)]: small where the critic says real."""
    return F.softplus(-logits.float()).mean()


def says_fake(logits: Tensor) -> Tensor:
    """E[-log(1 - sigmoid(C))]: small where the critic says fake."""
    return F.softplus(logits.float()).mean()


def says_class(logits: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy, mean over the batch; samples without a class (-1) add nothing."""
    return F.cross_entropy(logits.float(), label, ignore_index=-1, reduction="none").mean()
