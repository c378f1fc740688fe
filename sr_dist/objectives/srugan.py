"""SR-UGAN, equations 5 to 8: an auxiliary-classifier GAN.

D = sigmoid(logits) is the discriminator's real-or-fake output, K its class logits, y the label of the image.

    L_V = -E[log D(hr)] - E[log(1 - D(sr))]              real or fake
    L_C =  E[CE(K(hr), y)] + E[CE(K(sr), y)]             which class
    discriminator minimizes   L_V + class_weight L_C
    generator minimizes       L_content + 1e-3 (-E[log D(sr)])

L_content is the weighted sum of the terms in `content`. The paper sums over samples; E is the mean over the global batch; the
paper's class_weight is 1. `generator_class_weight` adds CE(K(sr), y) to the generator's loss, as the author's later code does
(1e-3) and the paper does not. The accuracies of K(hr) and K(sr) are logged. Without a class head there is no L_C. Samples without
a label (-1) add zero to its means and count as wrong in the accuracies. `r1_weight`, `r1_every` and `r1_noise` are as in srgan.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from sr_dist.core.batch import Batch, Reading, Terms
from sr_dist.core.contracts import Discriminator, Phase
from sr_dist.core.launch_env import Launch
from sr_dist.losses.adversarial import bce_fake, bce_real, class_cross_entropy
from sr_dist.losses.classification import accuracy
from sr_dist.losses.content_terms import ContentTerms
from sr_dist.losses.gradient_penalty import R1Config, penalized, refuses_exact
from sr_dist.recipe.weights import Weight, weight_at


class Config(R1Config):
    content: dict[str, Any] = {"mse": {"weight": 1.0, "range": "-1..1"}, "vgg": {"weight": 1.0, "layers": "conv5_4"}}
    """Content terms with weights."""
    adversarial_weight: Weight = 1e-3
    """A number, or numbers by step."""
    class_weight: float = 1.0
    """The weight of L_C in the discriminator's loss."""
    generator_class_weight: float = 0.0
    """The weight of CE(K(sr), y) in the generator's loss."""


def refuses(config: Config, launch: Launch) -> str | None:
    return refuses_exact(config, launch, config.r1_weight)


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
        fake = discriminator(sr)
        terms = self.content(sr, batch)
        terms["adversarial"] = weight_at(self.config.adversarial_weight, batch.step) * bce_real(fake.logits)
        if fake.class_logits is not None and self.config.generator_class_weight:
            terms["class"] = self.config.generator_class_weight * class_cross_entropy(fake.class_logits, batch.label)
        return terms

    def discriminator_loss(self, discriminator: Discriminator, batch: Batch, sr: Tensor) -> Terms:
        real, r1 = penalized(discriminator, batch.hr, batch, self.config.r1_weight, self.config)
        fake = discriminator(sr)
        terms: Terms = {"real": bce_real(real.logits), "fake": bce_fake(fake.logits)}
        if real.class_logits is not None and fake.class_logits is not None:
            terms["class_real"] = self.config.class_weight * class_cross_entropy(real.class_logits, batch.label)
            terms["class_fake"] = self.config.class_weight * class_cross_entropy(fake.class_logits, batch.label)
            terms["accuracy_real"] = Reading(accuracy(real.class_logits, batch.label))
            terms["accuracy_fake"] = Reading(accuracy(fake.class_logits, batch.label))
        if r1 is not None:
            terms["r1"] = r1
        return terms
