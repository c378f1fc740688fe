"""Training a classifier K: cross-entropy with the classes of the shards, or with some of their attributes a.

    class          E[-log softmax(K(x))_y]
    attributes     E[mean_a -y_a log sigmoid(K(x)_a) - (1 - y_a) log(1 - sigmoid(K(x)_a))]

`balance: weights` weights the terms so that every class, or having and lacking an attribute, counts the same. The shares of the
training samples come from the shards and are written into the run's recipe. x is LR at scale 1: HR, or HR through the recipe's
degradation.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from sr_dist.core.batch import Batch, Reading, Terms
from sr_dist.core.config import Names, Settings
from sr_dist.core.contracts import Phase
from sr_dist.core.errors import UserError
from sr_dist.losses.classification import accuracy, balancing, cross_entropy, targets
from sr_dist.recipe.labels import CLASS
from sr_dist.recipe.sections import Recipe


class Config(Settings):
    labels: Names = (CLASS,)
    """class, or attributes of the shards."""
    balance: Literal["none", "weights"] = "none"
    """Whether rare labels weigh more."""
    shares: tuple[float, ...] = ()
    """The share of every class, or of each attribute; taken from the shards."""


def check(config: Config, recipe: Recipe) -> None:
    if recipe.scale != 1:
        raise UserError(f"scale: {recipe.scale}, but a classifier sees images in their own size; say 1")


class Objective(nn.Module):
    phases: tuple[Phase, ...] = ("classifier",)
    validation: Literal["classification"] = "classification"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def forward(self, classifier: nn.Module, batch: Batch) -> Tensor:
        return classifier(batch.lr)

    def classifier_loss(self, discriminator: None, batch: Batch, logits: Tensor) -> Terms:
        y = targets(self.config.labels, batch)
        weight = balancing(y, self.config.shares) if self.config.balance == "weights" else None
        return {"cross_entropy": cross_entropy(logits, y, weight).mean(), "accuracy": Reading(accuracy(logits, y).detach())}
