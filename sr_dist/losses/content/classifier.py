"""Class knowledge: what frozen classifiers K make of sr, beside what they make of hr.

    L = sum_K E[CE(K(sr), y) - CE(K(hr), y)]

y is the label or the attributes of the shards (`target: label`, as in the class-conditional study), or what K says of hr
(`target: prediction`, as in the digits study). The second part is no function of the generator: the gradient is that of
CE(K(sr), y), and the value tends to zero as sr is told apart as well as hr. `absolute: true` takes |.| of every image, whose
gradient turns where sr is told apart better than hr. The log has both parts, their difference, and how often K(sr) is y.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from sr_dist.core.batch import Batch, Reading
from sr_dist.core.config import Names, Settings
from sr_dist.core.errors import UserError
from sr_dist.losses.classification import accuracy, cross_entropy, targets
from sr_dist.models import trained
from sr_dist.models.frozen_classifier import FrozenClassifier
from sr_dist.recipe.labels import CLASS, LabelNames, check_fits
from sr_dist.recipe.sections import Recipe

KEY = "objective.content.classifier.runs"


class Config(Settings):
    runs: Names = ()  # of finished classifiers: run folders or weights files
    target: Literal["label", "prediction"] = "label"
    absolute: bool = False


def build(config: Config) -> nn.Module:
    return ClassKnowledge(config)


def check(config: Config, recipe: Recipe) -> None:
    if not config.runs:
        raise UserError(f"{KEY}: names no classifier; say one or more run folders or weights files")


def check_labels(config: Config, available: LabelNames) -> None:
    """Every classifier exists, and the shards have the labels that it distinguishes."""
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
            value, found = self._one(classifier, sr, batch)
            values.append(value)
            taken = f"{classifier.name}_sr" in readings
            name = f"{classifier.name}_{number}" if taken else classifier.name
            readings.update({f"{name}_{what}": Reading(reading.detach()) for what, reading in found.items()})
        return torch.stack(values).sum(), readings

    def _one(self, classifier: FrozenClassifier, sr: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            original = classifier(batch.hr)  # (B, labels)
        if self.config.target == "label":
            y = targets(classifier.labels.words, batch)
        else:
            y = original.argmax(1) if classifier.labels.kind == CLASS else (original > 0).to(original.dtype)
        restored = classifier(sr)
        of_sr, of_hr = cross_entropy(restored, y), cross_entropy(original, y)  # (B,)
        difference = of_sr - of_hr
        readings = {"sr": of_sr.mean(), "hr": of_hr.mean(), "difference": difference.mean(), "accuracy": accuracy(restored, y)}
        return (difference.abs() if self.config.absolute else difference).mean(), readings
