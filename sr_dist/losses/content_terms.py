"""`content: {mse: 1.0, vgg: {weight: 1.0, layers: conv5_4}}` -> named, weighted terms of a loss.

Each term is one file in `losses/content/`. With the weight 0 a term is only measured: no gradient is computed.
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
    """All content terms of an objective. The value under a term's name is already weighted."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        super().__init__()
        self.weights: dict[str, float] = {}
        self.terms = nn.ModuleDict()
        for name, (weight, options) in content_sections(content).items():
            self.weights[name] = weight
            module, config = plugins.resolve(PACKAGES["content"], name, options, f"objective.content.{name}")
            self.terms[name.replace(".", "-")] = module.build(config)

    def forward(self, sr: Tensor, batch: Batch) -> Terms:
        terms: Terms = {}
        for (name, weight), term in zip(self.weights.items(), self.terms.values(), strict=True):
            with torch.set_grad_enabled(torch.is_grad_enabled() and weight > 0):
                result = term(sr, batch)
            value, readings = result if isinstance(result, tuple) else (result, {})
            terms[name] = weight * value
            terms |= {f"{name}_{suffix}": reading for suffix, reading in readings.items()}
        return terms
