"""Class knowledge: how frozen classifiers K answer on sr, compared with their answers on hr.

    L = sum_K E[CE(K(sr), y) - CE(K(hr), y)]

y is the label or the attributes of the shards (`target: label`, as we read the class-conditional study), or K's prediction on
hr (`target: prediction`, as in the digits study, whose code lets no gradient of the term through). The class-conditional
study's words have the opposite sign, CE(K(hr), y) - CE(K(sr), y); minimizing that would reward wrong classes. The second part
does not depend on the generator: the gradient is that of CE(K(sr), y), and the value tends to zero as K answers on sr as well
as on hr. `absolute: true` takes the absolute value for every image, whose gradient changes sign where K answers better on sr.
Both parts, their difference and the accuracy on sr are logged.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from sr_dist.core.batch import Batch, Reading
from sr_dist.core.config import Names, Settings
from sr_dist.core.contracts import ContentTerm
from sr_dist.core.errors import UserError
from sr_dist.losses.classification import accuracy, cross_entropy, targets
from sr_dist.models import trained
from sr_dist.models.frozen_classifier import FrozenClassifier
from sr_dist.recipe.labels import CLASS, LabelNames, check_fits
from sr_dist.recipe.sections import Recipe

KEY = "objective.content.classifier.runs"


class Config(Settings):
    runs: Names = ()
    """Trained classifiers: run folders or weights files."""
    target: Literal["label", "prediction"] = "label"
    """The shards' labels, or the classifier's prediction on hr."""
    absolute: bool = False
    """Take the absolute value of every image's difference."""


def build(config: Config) -> ContentTerm:
    return ClassKnowledge(config)


def check(config: Config, recipe: Recipe) -> None:
    if not config.runs:
        raise UserError(f"{KEY}: names no classifier; say one or more run folders or weights files")


def check_labels(config: Config, available: LabelNames) -> None:
    """Every classifier exists, and the shards have its labels."""
    for path in config.runs:
        classifier = trained.open_classifier(path, KEY)
        if config.target == "label":
            check_fits(classifier.labels, available, f"{KEY}: '{path}'")


class ClassKnowledge(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.classifiers = nn.ModuleList(trained.open_classifier(path, KEY) for path in config.runs)

    def forward(self, sr: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Reading]]:
        values, readings = [], {}
        for number, classifier in enumerate(self.classifiers):
            assert isinstance(classifier, FrozenClassifier)
            value, own = self._one(classifier, sr, batch)
            values.append(value)
            taken = f"{classifier.name}_sr" in readings
            name = f"{classifier.name}_{number}" if taken else classifier.name
            readings.update({f"{name}_{suffix}": Reading(reading.detach()) for suffix, reading in own.items()})
        return torch.stack(values).sum(), readings

    def _one(self, classifier: FrozenClassifier, sr: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            on_hr = classifier(batch.hr)  # (B, labels)
        if self.config.target == "label":
            y = targets(classifier.labels.words, batch)
        else:
            y = on_hr.argmax(1) if classifier.labels.kind == CLASS else (on_hr > 0).to(on_hr.dtype)
        on_sr = classifier(sr)
        loss_sr, loss_hr = cross_entropy(on_sr, y), cross_entropy(on_hr, y)  # (B,)
        difference = loss_sr - loss_hr
        readings = {"sr": loss_sr.mean(), "hr": loss_hr.mean(), "difference": difference.mean(), "accuracy": accuracy(on_sr, y)}
        return (difference.abs() if self.config.absolute else difference).mean(), readings
