"""Losses of classifiers, image by image: cross-entropy over classes (softmax) or over attributes (a sigmoid each)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sr_dist.core.batch import Batch
from sr_dist.core.constants import numbers
from sr_dist.recipe.labels import CLASS


def targets(words: Sequence[str], batch: Batch) -> Tensor:
    """The true labels: (B,) class numbers for `class`, else (B, A) of 0 and 1, one column per attribute."""
    if tuple(words) == (CLASS,):
        return batch.label
    return torch.stack([batch.attributes[name] for name in words], 1)


def predictions(logits: Tensor, target: Tensor) -> Tensor:
    """The predicted labels in the form of this target."""
    return logits.argmax(1) if target.ndim == 1 else (logits > 0).to(target.dtype)


def cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """(B,), each with its weight (in the target's shape); the mean over attributes. Images without a class (-1) count 0."""
    if target.ndim == 1:
        losses = F.cross_entropy(logits.float(), target, ignore_index=-1, reduction="none")
    else:
        losses = F.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction="none")
    losses = losses if weight is None else weight * losses
    return losses if target.ndim == 1 else losses.mean(1)


def accuracy(logits: Tensor, target: Tensor) -> Tensor:
    """The share of correct predictions; images without a class count as wrong."""
    return (predictions(logits, target) == target).float().mean()


def balancing(target: Tensor, shares: Sequence[float]) -> Tensor:
    """Weights, 1 on average, under which every class (or having and lacking an attribute) counts the same.

    `shares` are those of the classes, or of the images that have each attribute.
    """
    share = numbers(tuple(shares), torch.float32, target.device)
    if target.ndim == 1:
        return (1 / (len(shares) * share))[target.clamp(min=0)]
    return target / (2 * share) + (1 - target) / (2 * (1 - share))
