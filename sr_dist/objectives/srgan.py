"""SRGAN (Ledig et al. 2017): a content loss, and a discriminator D = sigmoid(C) that separates real from restored images.

    discriminator minimizes   -E[log D(hr)] - E[log(1 - D(sr))]
    generator minimizes       L_content + 1e-3 (-E[log D(sr)])

L_content is the weighted sum of the terms in `content`. The paper sums over samples; E is the mean over the global batch. `form`
replaces the adversarial terms:

    least_squares   discriminator  E[(C(hr) - 1)^2] + E[C(sr)^2]                   generator  E[(C(sr) - 1)^2]
    hinge           discriminator  E[max(0, 1 - C(hr))] + E[max(0, 1 + C(sr))]     generator  -E[C(sr)]

`r1_weight` adds that multiple of E[|dC(hr)/dhr|^2] to the discriminator's loss (gamma / 2 of the R1 paper): in every step, or in
every k-th step k times as strong (`r1_every`); exact, or approximated with noise (`r1_noise`), which also runs under ZeRO.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from sr_dist.core.batch import Batch, Terms
from sr_dist.core.contracts import Discriminator, Phase
from sr_dist.core.launch_env import Launch
from sr_dist.losses.adversarial import FORMS, FormName
from sr_dist.losses.content_terms import ContentTerms
from sr_dist.losses.gradient_penalty import R1Config, penalized, refuses_exact
from sr_dist.recipe.checks import refuse_classes
from sr_dist.recipe.sections import Recipe
from sr_dist.recipe.weights import Weight, weight_at


class Config(R1Config):
    content: dict[str, Any] = {"vgg": {"weight": 1.0, "layers": "conv5_4"}}
    """Content terms with weights."""
    form: FormName = "standard"
    """The form of the adversarial terms."""
    adversarial_weight: Weight = 1e-3
    """A number, or numbers by step."""


def check(config: Config, recipe: Recipe) -> None:
    refuse_classes(recipe)


def refuses(config: Config, launch: Launch) -> str | None:
    return refuses_exact(config, launch, config.r1_weight)


class Objective(nn.Module):
    phases: tuple[Phase, ...] = ("generator", "discriminator")
    validation: Literal["restoration"] = "restoration"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.form = config, FORMS[config.form]
        self.content = ContentTerms(config.content)

    def forward(self, generator: nn.Module, batch: Batch) -> Tensor:
        return generator(batch.lr)

    def generator_loss(self, discriminator: Discriminator, batch: Batch, sr: Tensor) -> Terms:
        fake = discriminator(sr).logits
        return {
            **self.content(sr, batch),
            "adversarial": weight_at(self.config.adversarial_weight, batch.step) * self.form.generator(fake),
        }

    def discriminator_loss(self, discriminator: Discriminator, batch: Batch, sr: Tensor) -> Terms:
        (real, _), r1 = penalized(discriminator, batch.hr, batch, self.config.r1_weight, self.config)
        fake = discriminator(sr).logits
        terms: Terms = {"real": self.form.real(real), "fake": self.form.fake(fake)}
        if r1 is not None:
            terms["r1"] = r1
        return terms
