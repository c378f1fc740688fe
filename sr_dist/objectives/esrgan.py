"""ESRGAN (Wang et al. 2018): a relativistic average discriminator. C are its logits; r = hr, f = sr.

    D_Ra(a, b) = sigmoid(C(a) - E[C(b)])        a is more real than the average b

    discriminator minimizes   L_D = -E[log D_Ra(r, f)] - E[log(1 - D_Ra(f, r))]
    generator minimizes       VGG5.4 + 5e-3 L_G + 1e-2 L1
                              L_G = -E[log(1 - D_Ra(r, f))] - E[log D_Ra(f, r)]

Both terms of L_G have a gradient; that of the first passes through E[C(f)]. VGG5.4 is the mean absolute difference of features
before activation. E[C] is the mean over the global batch (`batch_mean: global`) or over each rank's images (`local`, as peers
do). It cannot span micro-batches, so `global` excludes accumulation. `halved: true` halves L_D and the adversarial term, as peers
do and the paper does not. `r1_weight`, `r1_every` and `r1_noise` are as in srgan.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from sr_dist.core.batch import Batch, Terms
from sr_dist.core.contracts import Discriminator, Phase
from sr_dist.core.errors import UserError
from sr_dist.core.launch_env import Launch
from sr_dist.losses.adversarial import bce_fake, bce_real, relative
from sr_dist.losses.content_terms import ContentTerms
from sr_dist.losses.gradient_penalty import R1Config, penalized, refuses_exact
from sr_dist.recipe.checks import refuse_classes
from sr_dist.recipe.sections import Recipe
from sr_dist.recipe.weights import Weight, weight_at


class Config(R1Config):
    content: dict[str, Any] = {
        "vgg": {"weight": 1.0, "layers": "conv5_4", "activated": False, "distance": "l1", "divide": 1.0},
        "l1": 1e-2,
    }
    """Content terms with weights."""
    adversarial_weight: Weight = 5e-3
    """A number, or numbers by step."""
    batch_mean: Literal["global", "local"] = "global"
    """The images of E[C]: those of all ranks, or of each rank."""
    halved: bool = False
    """Halve the adversarial terms, as peers do."""


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
    return refuses_exact(config, launch, config.r1_weight)


class Objective(nn.Module):
    phases: tuple[Phase, ...] = ("generator", "discriminator")
    validation: Literal["restoration"] = "restoration"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.factor = config, 0.5 if config.halved else 1.0
        self.content = ContentTerms(config.content)

    def forward(self, generator: nn.Module, batch: Batch) -> Tensor:
        return generator(batch.lr)

    def generator_loss(self, discriminator: Discriminator, batch: Batch, sr: Tensor) -> Terms:
        with torch.no_grad():
            real = discriminator(batch.hr).logits  # does not depend on the generator
        fake, over = discriminator(sr).logits, self.config.batch_mean
        adversarial = bce_fake(relative(real, fake, over)) + bce_real(relative(fake, real, over))
        return {
            **self.content(sr, batch),
            "adversarial": weight_at(self.config.adversarial_weight, batch.step) * self.factor * adversarial,
        }

    def discriminator_loss(self, discriminator: Discriminator, batch: Batch, sr: Tensor) -> Terms:
        (real, _), r1 = penalized(discriminator, batch.hr, batch, self.config.r1_weight, self.config)
        fake, over = discriminator(sr).logits, self.config.batch_mean
        terms: Terms = {
            "real": self.factor * bce_real(relative(real, fake, over)),
            "fake": self.factor * bce_fake(relative(fake, real, over)),
        }
        if r1 is not None:
            terms["r1"] = r1
        return terms
