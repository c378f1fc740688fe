"""`content: {mse: 1.0, vgg: {weight: 1.0, layers: conv5_4}}` -> named, weighted terms of a loss.

A term is a module `(sr, batch)` -> a scalar, or (a scalar, {name: Reading}) where it has something to say beside it. With the
weight 0 it is only measured: nothing is trained on it, and no gradient computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sr_dist.core import plugins
from sr_dist.core.batch import Batch, Terms
from sr_dist.core.plugins import PACKAGES
from sr_dist.recipe.content import content_sections


class ContentTerms(nn.Module):
    """Each term is one file in `losses/content/`; the value under its name is already weighted."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        super().__init__()
        self.weights: dict[str, float] = {}
        self.terms = nn.ModuleDict()
        for name, (weight, options) in content_sections(content).items():
            self.weights[name] = weight
            module, config = plugins.resolve(PACKAGES["content"], name, options, f"objective.content.{name}")
            self.terms[name.replace(".", "-")] = module.build(config)

    def forward(self, sr: Tensor, batch: Batch) -> Terms:
        found: Terms = {}
        for (name, weight), term in zip(self.weights.items(), self.terms.values(), strict=True):
            with torch.set_grad_enabled(torch.is_grad_enabled() and weight > 0):
                said = term(sr, batch)
            value, readings = said if isinstance(said, tuple) else (said, {})
            found[name] = weight * value
            found |= {f"{name}_{what}": reading for what, reading in readings.items()}
        return found
