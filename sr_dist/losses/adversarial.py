"""Adversarial losses as functions of a discriminator's logits C: means over the batch, and over patches where C has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sr_dist.core import ranks


def bce_real(logits: Tensor) -> Tensor:
    """E[-log sigmoid(C)]: cross-entropy with the label real."""
    return F.softplus(-logits.float()).mean()


def bce_fake(logits: Tensor) -> Tensor:
    """E[-log(1 - sigmoid(C))]: cross-entropy with the label fake."""
    return F.softplus(logits.float()).mean()


def squared_to_one(logits: Tensor) -> Tensor:
    """E[(C - 1)^2], without LSGAN's factor 1/2."""
    return (logits.float() - 1).square().mean()


def squared_to_zero(logits: Tensor) -> Tensor:
    """E[C^2]"""
    return logits.float().square().mean()


def hinge_real(logits: Tensor) -> Tensor:
    """E[max(0, 1 - C)]"""
    return F.relu(1 - logits.float()).mean()


def hinge_fake(logits: Tensor) -> Tensor:
    """E[max(0, 1 + C)]"""
    return F.relu(1 + logits.float()).mean()


def negative_mean(logits: Tensor) -> Tensor:
    """-E[C]"""
    return -logits.float().mean()


class Form(NamedTuple):
    """Losses on logits: the discriminator's on real and on fake images, the generator's on its own."""

    real: Callable[[Tensor], Tensor]
    fake: Callable[[Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


FormName = Literal["standard", "least_squares", "hinge"]
FORMS: dict[FormName, Form] = {
    "standard": Form(bce_real, bce_fake, bce_real),
    "least_squares": Form(squared_to_one, squared_to_zero, squared_to_one),
    "hinge": Form(hinge_real, hinge_fake, negative_mean),
}


def relative(logits: Tensor, others: Tensor, over: Literal["global", "local"]) -> Tensor:
    """C(a) - E[C(b)], whose sigmoid is the relativistic average D_Ra(a, b).

    `global`: the mean over the images of all ranks, with the gradient that one process would have; all ranks must call.
    `local`: the mean over this rank's images; the loss then depends on the number of ranks.
    """
    mean = ranks.global_mean(others) if over == "global" else others.float().mean()
    return logits.float() - mean


def image_logits(logits: Tensor, images: int) -> Tensor:
    """(B,): the mean of each image's patches."""
    return logits.float().reshape(images, -1).mean(1)


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """E[|dC(x)/dx|^2] on real images x, which must require gradients. C is the mean over an image's patches.

    It differentiates a gradient (a double backward).
    """
    (gradient,) = torch.autograd.grad(image_logits(logits, len(images)).sum(), images, create_graph=True)
    return gradient.float().square().sum((1, 2, 3)).mean()


def class_cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """The mean over the batch; samples without a class (-1) add nothing."""
    return F.cross_entropy(logits.float(), label, ignore_index=-1, reduction="none").mean()
