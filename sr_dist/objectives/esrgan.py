"""ESRGAN: the critic says whether an image is more real than the average of the others (relativistic average GAN).

    D_Ra(a, b) = sigmoid(C(a) - E[C(b)]),  r = hr, f = sr

    critic minimises     L_D = -E_r[log D_Ra(r, f)] - E_f[log(1 - D_Ra(f, r))]
    generator minimises  VGG5.4 + 5e-3 L_G + 1e-2 L1
                         L_G = -E_r[log(1 - D_Ra(r, f))] - E_f[log D_Ra(f, r)]

Both terms of L_G have a gradient: the first through E[C(f)]. VGG5.4 is the mean absolute difference before activation.
E[C] is over the global batch, all ranks (`batch_mean: global`), or over each rank's part (`local`, as peers do). It cannot
span micro-batches, which are gone when the next one comes, so `global` goes without accumulation. `halved: true` halves both
terms of L_D and L_G, as peers do; the paper does not. `r1_weight` is as in srgan.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sr_dist.core.batch import Batch, Terms
from sr_dist.core.config import Settings
from sr_dist.core.errors import UserError
from sr_dist.core.launch_env import Launch
from sr_dist.losses.adversarial import r1_penalty, r1_refuses, relative, says_fake, says_real
from sr_dist.losses.content_terms import ContentTerms
from sr_dist.recipe.checks import refuse_classes
from sr_dist.recipe.sections import Recipe


class Config(Settings):
    content: dict[str, Any] = {
        "vgg": {"weight": 1.0, "layers": "conv5_4", "activated": False, "distance": "l1", "divide": 1.0},
        "l1": 1e-2,
    }
    adversarial_weight: float = 5e-3
    batch_mean: Literal["global", "local"] = "global"
    halved: bool = False
    r1_weight: Annotated[float, Field(ge=0)] = 0.0


def check(config: Config, recipe: Recipe) -> None:
    refuse_classes(recipe)
    if config.batch_mean == "local":
        return
    if recipe.accumulate > 1:
        raise UserError(
            f"objective.batch_mean: global cannot span the {recipe.accumulate} micro-batches of a step; "
            f"use accumulate=1 or objective.batch_mean=local"
        )
    if recipe.data.crop is None:
        raise UserError(
            "objective.batch_mean: global cannot span whole images (data.crop: none), which are micro-batches of one; "
            "use a crop or objective.batch_mean=local"
        )


def refuses(config: Config, launch: Launch) -> str | None:
    return r1_refuses(config.r1_weight, launch)


class Objective(nn.Module):
    phases = ("generator", "discriminator")
    validation = "restoration"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.factor = config, 0.5 if config.halved else 1.0
        self.content = ContentTerms(config.content)

    def forward(self, generator: nn.Module, batch: Batch) -> Tensor:
        return generator(batch.lr)

    def generator_loss(self, discriminator: nn.Module, batch: Batch, sr: Tensor) -> Terms:
        with torch.no_grad():
            real = discriminator(batch.hr).logits  # the same for every generator
        fake, over = discriminator(sr).logits, self.config.batch_mean
        fooled = says_fake(relative(real, fake, over)) + says_real(relative(fake, real, over))
        return {**self.content(sr, batch), "adversarial": self.config.adversarial_weight * self.factor * fooled}

    def discriminator_loss(self, discriminator: nn.Module, batch: Batch, sr: Tensor) -> Terms:
        hr = batch.hr.detach().requires_grad_(self.config.r1_weight > 0)
        real, fake, over = discriminator(hr).logits, discriminator(sr).logits, self.config.batch_mean
        terms: Terms = {
            "real": self.factor * says_real(relative(real, fake, over)),
            "fake": self.factor * says_fake(relative(fake, real, over)),
        }
        if self.config.r1_weight:
            terms["r1"] = self.config.r1_weight * r1_penalty(real, hr)
        return terms
