"""SR-UGAN, equations 5 to 8: an ACGAN critic that also names the class, and a generator with a content loss.

    L_V = -E[log D(hr)] - E[log(1 - D(sr))]              real or fake
    L_C =  E[CE(C(hr), y)] + E[CE(C(sr), y)]             which class
    critic minimises     L_V + L_C
    generator minimises  L_content + 1e-3 (-E[log D(sr)])

The paper's sums over samples are means over the global batch here. `generator_class_weight` adds CE(C(sr), y) for the
generator, as the author's later code does (1e-3); the paper does not. How often C(hr) and C(sr) name the class is logged.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sr_dist.core.batch import Batch, Reading, Terms
from sr_dist.core.config import Settings
from sr_dist.losses.adversarial import says_class, says_fake, says_real
from sr_dist.losses.classification import accuracy
from sr_dist.losses.content_terms import ContentTerms


class Config(Settings):
    content: dict[str, Any] = {"mse": {"weight": 1.0, "range": "-1..1"}, "vgg": {"weight": 1.0, "layers": "conv5_4"}}
    adversarial_weight: float = 1e-3
    class_weight: float = 1.0  # of L_C in the critic's loss
    generator_class_weight: float = 0.0


class Objective(nn.Module):
    phases = ("generator", "discriminator")
    validation = "restoration"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.content = ContentTerms(config.content)

    def forward(self, generator: nn.Module, batch: Batch) -> Tensor:
        return generator(batch.lr)

    def generator_loss(self, discriminator: nn.Module, batch: Batch, sr: Tensor) -> Terms:
        fake = discriminator(sr)
        terms = self.content(sr, batch)
        terms["adversarial"] = self.config.adversarial_weight * says_real(fake.logits)
        if fake.class_logits is not None and self.config.generator_class_weight:
            terms["class"] = self.config.generator_class_weight * says_class(fake.class_logits, batch.label)
        return terms

    def discriminator_loss(self, discriminator: nn.Module, batch: Batch, sr: Tensor) -> Terms:
        real, fake = discriminator(batch.hr), discriminator(sr)
        terms: Terms = {"real": says_real(real.logits), "fake": says_fake(fake.logits)}
        if real.class_logits is not None:
            terms["class_real"] = self.config.class_weight * says_class(real.class_logits, batch.label)
            terms["class_fake"] = self.config.class_weight * says_class(fake.class_logits, batch.label)
            terms["accuracy_real"] = Reading(accuracy(real.class_logits, batch.label))
            terms["accuracy_fake"] = Reading(accuracy(fake.class_logits, batch.label))
        return terms
