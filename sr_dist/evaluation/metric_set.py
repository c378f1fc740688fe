"""What is measured. A metric is a file in `metrics/`, of one of two kinds: of an image (`per_image`), or of the set of all
images (`of_sets` and `floor`), which compares features of the kind that its `VIEW` says.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from sr_dist.core import plugins, ranks
from sr_dist.core.plugins import PACKAGES
from sr_dist.evaluation.classifiers.classifier_answers import Judge
from sr_dist.evaluation.distances.extractor import INCEPTION, Extractor, inception
from sr_dist.models import pretrained
from sr_dist.recipe.columns import foreign_column


@dataclass(frozen=True)
class Metrics:
    """`missing`: columns that cannot be computed here, and why."""

    modules: tuple[Any, ...]
    extractor: Extractor | None = None
    foreign: bool = False  # the extractor is not the FID Inception
    missing: dict[str, str] = field(default_factory=dict)
    judges: tuple[Judge, ...] = ()  # classifiers

    @property
    def better(self) -> dict[str, str]:
        """Every column -> whether "higher" or "lower" is better."""
        own = {self.column(own, module): sense for module in self.modules for own, sense in module.BETTER.items()}
        return own | dict.fromkeys((column for judge in self.judges for column in judge.columns), "higher")

    @property
    def per_image(self) -> list[Any]:
        return [module for module in self.modules if not is_of_sets(module)]

    @property
    def views(self) -> list[str]:
        """The kinds of features that are needed."""
        return sorted({module.VIEW for module in self.modules if is_of_sets(module)}) if self.extractor else []

    def of_sets(self, view: str) -> dict[str, Any]:
        """Column -> metric, of those that compare such features."""
        chosen = [module for module in self.modules if is_of_sets(module) and view == module.VIEW]
        return {self.column(own, module): module for module in chosen for own in module.BETTER}

    def measured_by(self, column: str) -> str | None:
        """The sha256 of the weights whose features a column compares; values by others are not to be compared with it."""
        of_sets = any(column in self.of_sets(view) for view in self.views)
        return self.extractor.weights_sha256 if self.extractor and of_sets else None

    def column(self, own: str, module: Any) -> str:
        """A distance between other features than the FID Inception's is never called by its name."""
        if not (self.foreign and self.extractor and is_of_sets(module)):
            return own
        return foreign_column(own, self.extractor.name)


def is_of_sets(module: Any) -> bool:
    return hasattr(module, "of_sets")


def modules(names: Sequence[str]) -> tuple[Any, ...]:
    return tuple(importlib.import_module(plugins.locate(PACKAGES["metric"], name, "metrics")[0]) for name in names)


def needed_files(chosen: Sequence[Any], resize: str, own: Extractor | None) -> dict[str, str]:
    """The published file behind each column that needs one; an extractor of the user's own needs none."""
    found: dict[str, str] = {}
    for module in chosen:
        if not is_of_sets(module):
            found |= getattr(module, "NEEDS", {})
        elif not own:
            found |= dict.fromkeys(module.BETTER, INCEPTION[resize])
    return found


def open_metrics(
    names: Sequence[str], device: torch.device, resize: str = "clean", own: Extractor | None = None,
    download: bool = False,
    judges: Sequence[Judge] = (),
) -> Metrics:  # fmt: skip
    """All ranks must call: what one of them does not find is missing."""
    chosen = modules(names)
    missing: dict[str, str] = {}
    for column, file in needed_files(chosen, resize, own).items():
        try:
            pretrained.find(file, column, download)
        except pretrained.MissingWeights as problem:
            missing[column] = str(problem).removeprefix(f"{column}: ")
    missing = {column: reason for part in reversed(ranks.gather(missing)) for column, reason in part.items()}
    sets = [column for module in chosen if is_of_sets(module) for column in module.BETTER]
    if not sets or missing.keys() & set(sets):
        return Metrics(chosen, missing=missing, judges=tuple(judges))
    return Metrics(chosen, own or inception(resize, device), own is not None, missing, tuple(judges))
