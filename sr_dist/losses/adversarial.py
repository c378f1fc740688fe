"""Adversarial losses as functions of a critic's logits C: means over the batch (and over patches, where it judges those)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sr_dist.core import ranks
from sr_dist.core.launch_env import Launch


def says_real(logits: Tensor) -> Tensor:
    """E[-log sigmoid(C)]: small where the critic says real."""
    return F.softplus(-logits.float()).mean()


def says_fake(logits: Tensor) -> Tensor:
    """E[-log(1 - sigmoid(C))]: small where the critic says fake."""
    return F.softplus(logits.float()).mean()


def near_one(logits: Tensor) -> Tensor:
    """E[(C - 1)^2], without LSGAN's factor 1/2."""
    return (logits.float() - 1).square().mean()


def near_zero(logits: Tensor) -> Tensor:
    """E[C^2]"""
    return logits.float().square().mean()


def above_one(logits: Tensor) -> Tensor:
    """E[max(0, 1 - C)]"""
    return F.relu(1 - logits.float()).mean()


def below_minus_one(logits: Tensor) -> Tensor:
    """E[max(0, 1 + C)]"""
    return F.relu(1 + logits.float()).mean()


def large(logits: Tensor) -> Tensor:
    """-E[C]"""
    return -logits.float().mean()


class Form(NamedTuple):
    """What the critic minimises on real and on fake images, and the generator on its own."""

    real: Callable[[Tensor], Tensor]
    fake: Callable[[Tensor], Tensor]
    fool: Callable[[Tensor], Tensor]


FormName = Literal["standard", "least_squares", "hinge"]
FORMS: dict[FormName, Form] = {
    "standard": Form(says_real, says_fake, says_real),
    "least_squares": Form(near_one, near_zero, near_one),
    "hinge": Form(above_one, below_minus_one, large),
}


def relative(logits: Tensor, others: Tensor, over: Literal["global", "local"]) -> Tensor:
    """C(a) - E[C(b)], whose sigmoid is the relativistic average D_Ra(a, b).

    The mean is over the images of all ranks (`global`: all ranks must call, and the gradient is that of one process), or
    over this rank's alone (`local`: a relativistic loss then depends on the number of ranks).
    """
    mean = ranks.global_mean(others) if over == "global" else others.float().mean()
    return logits.float() - mean


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """E[|dC(x)/dx|^2] on real images x, which must ask for gradients; C is the mean over an image's patches.

    It differentiates a gradient (a double backward), which engines that take gradients apart while they arrive cannot do.
    """
    (gradient,) = torch.autograd.grad(logits.float().reshape(len(images), -1).mean(1).sum(), images, create_graph=True)
    return gradient.float().square().sum((1, 2, 3)).mean()


def r1_refuses(weight: float, launch: Launch) -> str | None:
    """Why a recipe with this weight cannot run, or None."""
    if weight and launch.stage:
        return f"r1_weight: its double backward does not run under ZeRO (stage {launch.stage}); use DDP or r1_weight=0"
    return None


def says_class(logits: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy, mean over the batch; samples without a class (-1) add nothing."""
    return F.cross_entropy(logits.float(), label, ignore_index=-1, reduction="none").mean()
