"""Zero-centred gradient penalties on a discriminator C, in every k-th step, exact or approximated.

    exact          E[|dC(x)/dx|^2]                                        R1 on real images (Mescheder et al. 2018), R2 on fakes
    approximated   E[(C(x + s n) - C(x))^2] / s^2,   n ~ N(0, 1)          no double backward (Lin et al. 2025, arXiv 2501.08316)

For a small s the second one estimates the first, because E[(g n)^2] = |g|^2. The paper does not divide by s^2; we do, so that one
weight means the same in both. The exact form differentiates a gradient, which ZeRO and compiled code cannot.

In every k-th step the penalty counts k times (the lazy regularization of StyleGAN2). The betas of Adam stay as they are, where
StyleGAN2 adapts them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from sr_dist.core.batch import Batch, DiscriminatorOutput
from sr_dist.core.config import Positive, Settings
from sr_dist.core.contracts import Discriminator
from sr_dist.core.keyed_random import Draws
from sr_dist.core.launch_env import Launch
from sr_dist.core.precision import without_autocast
from sr_dist.losses.adversarial import image_logits, r1_penalty


class R1Config(Settings):
    r1_weight: Annotated[float, Field(ge=0)] = 0.0
    """The weight of the R1 penalty."""
    r1_every: Positive = 1
    """The penalty acts in every k-th step, k times as strong."""
    r1_noise: Annotated[float, Field(ge=0)] = 0.0
    """The deviation of the noise that approximates the penalty, such as 0.01; 0 is the exact penalty."""


def penalized(
    discriminator: Discriminator, images: Tensor, batch: Batch, weight: float, config: R1Config
) -> tuple[DiscriminatorOutput, Tensor | None]:
    """C of the images, and the penalty times its weight, or None in a step without one."""
    if not weight or batch.step % config.r1_every:
        return discriminator(images.detach()), None
    weight = weight * config.r1_every
    if config.r1_noise:
        output, penalty = approximated(discriminator, images.detach(), batch, config.r1_noise)
        return output, weight * penalty
    images = images.detach().requires_grad_()
    with uncompiled():
        output = discriminator(images)
    return output, weight * r1_penalty(output.logits, images)


def approximated(
    discriminator: Discriminator, images: Tensor, batch: Batch, deviation: float
) -> tuple[DiscriminatorOutput, Tensor]:
    """One pass over the images and the same images with noise, so that both meet the same spectral norms.

    In fp32: the difference of two bf16 numbers is mostly rounding.
    """
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    with without_autocast(images):
        both = discriminator(torch.cat([images, images + deviation * noise(images, batch)]))
    pair = image_logits(both.logits, 2 * len(images)).view(2, -1)  # (2, B)
    penalty = (pair[1] - pair[0]).square().mean() / deviation**2
    classes = None if both.class_logits is None else both.class_logits[: len(images)]
    return DiscriminatorOutput(both.logits[: len(images)], classes), penalty


def noise(images: Tensor, batch: Batch) -> Tensor:
    """Normal numbers of the samples and the step: the same in any batch and on any rank, and after resuming. The samples' seeds
    are on the device already, so nothing waits for a copy."""
    seeds = torch.arange(len(images), device=images.device) << 32 if batch.seeds is None else batch.seeds
    return Draws(seeds + batch.step).normal(*images.shape[1:]).to(images.dtype)  # the degradation draws from the seeds themselves


def uncompiled() -> AbstractContextManager[None]:
    """Around the forward pass for the exact penalty: compiled code has no double backward, so the network runs uncompiled."""
    return torch.compiler.set_stance("force_eager")


def refuses_exact(config: R1Config, launch: Launch, weight: float, name: str = "r1_weight") -> str | None:
    """Why a recipe with this weight cannot run, or None: ZeRO partitions gradients as they arrive."""
    if weight and launch.stage and not config.r1_noise:
        return (
            f"{name}: its double backward does not run under ZeRO (stage {launch.stage}); "
            f"use r1_noise=0.01 (no double backward), DDP, or {name}=0"
        )
    return None
