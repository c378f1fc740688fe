"""R3GAN's loss (Huang et al. 2024, "The GAN is dead; long live the GAN!") with content terms: relativistic pairing, R1 and R2.

    discriminator minimizes   E[softplus(C(sr) - C(hr))] + r1_weight E[|dC(hr)/dhr|^2] + r2_weight E[|dC(sr)/dsr|^2]
    generator minimizes       L_content + adversarial_weight E[softplus(C(hr) - C(sr))]

The paper pairs any real image with any generated one; here each sr meets its own hr, patch by patch where C has patches. No mean
over other images enters the loss, so it spans ranks and micro-batches as they are. r1_weight and r2_weight are the paper's
gamma / 2, on images in [0, 1]; no paper gives values for super-resolution. `r1_every` and `r1_noise` act on both penalties.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sr_dist.core.batch import Batch, Terms
from sr_dist.core.contracts import Discriminator, Phase
from sr_dist.core.launch_env import Launch
from sr_dist.losses.content_terms import ContentTerms
from sr_dist.losses.gradient_penalty import R1Config, penalized, refuses_exact
from sr_dist.recipe.checks import refuse_classes
from sr_dist.recipe.sections import Recipe
from sr_dist.recipe.weights import Weight, weight_at


class Config(R1Config):
    content: dict[str, Any] = {"vgg": {"weight": 1.0, "layers": "conv5_4"}}
    """Content terms with weights."""
    adversarial_weight: Weight = 5e-3
    """A number, or numbers by step."""
    r1_weight: Annotated[float, Field(ge=0)] = 0.1
    """The weight of the R1 penalty, on HR."""
    r2_weight: Annotated[float, Field(ge=0)] = 0.1
    """The weight of the R2 penalty, on SR."""


def check(config: Config, recipe: Recipe) -> None:
    refuse_classes(recipe)


def refuses(config: Config, launch: Launch) -> str | None:
    return refuses_exact(config, launch, config.r1_weight) or refuses_exact(config, launch, config.r2_weight, "r2_weight")


class Objective(nn.Module):
    phases: tuple[Phase, ...] = ("generator", "discriminator")
    validation: Literal["restoration"] = "restoration"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.content = ContentTerms(config.content)

    def forward(self, generator: nn.Module, batch: Batch) -> Tensor:
        return generator(batch.lr)

    def generator_loss(self, discriminator: Discriminator, batch: Batch, sr: Tensor) -> Terms:
        with torch.no_grad():
            real = discriminator(batch.hr).logits  # does not depend on the generator
        adversarial = larger(discriminator(sr).logits, real)
        return {
            **self.content(sr, batch),
            "adversarial": weight_at(self.config.adversarial_weight, batch.step) * adversarial,
        }

    def discriminator_loss(self, discriminator: Discriminator, batch: Batch, sr: Tensor) -> Terms:
        (real, _), r1 = penalized(discriminator, batch.hr, batch, self.config.r1_weight, self.config)
        (fake, _), r2 = penalized(discriminator, sr, batch, self.config.r2_weight, self.config)
        terms: Terms = {"paired": larger(real, fake)}
        return terms | {name: term for name, term in (("r1", r1), ("r2", r2)) if term is not None}


def larger(a: Tensor, b: Tensor) -> Tensor:
    """E[softplus(b - a)] = E[-log sigmoid(a - b)], small where a is larger."""
    return F.softplus(b.float() - a.float()).mean()
