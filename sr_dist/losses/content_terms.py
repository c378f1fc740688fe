"""`content: {mse: 1.0, vgg: {weight: 1.0, layers: conv5_4}}` -> named, weighted terms of a loss.

Each term is one file in `losses/content/`. With the weight 0 a term is only measured: no gradient is computed. `none` in place of
a section leaves the term out. A weight may depend on the step (recipe/weights.py). `sharpen: true` compares with sharpened HR.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sr_dist.core import plugins
from sr_dist.core.batch import Batch, Terms
from sr_dist.core.plugins import PACKAGES
from sr_dist.core.sharpen import sharpened
from sr_dist.recipe.content import content_sections
from sr_dist.recipe.weights import Points, is_never_trained, weight_at


class ContentTerms(nn.Module):
    """All content terms of an objective. The value under a term's name is already weighted."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        super().__init__()
        self.weights: dict[str, float | Points] = {}
        self.sharpen: list[bool] = []
        self.terms = nn.ModuleDict()
        for name, section in content_sections(content).items():
            self.weights[name] = section.weight
            self.sharpen.append(section.sharpen)
            module, config = plugins.resolve(PACKAGES["content"], name, section.options, f"objective.content.{name}")
            self.terms[name.replace(".", "-")] = module.build(config)

    def forward(self, sr: Tensor, batch: Batch) -> Terms:
        terms: Terms = {}
        sharp = replace(batch, hr=sharpened(batch.hr)) if any(self.sharpen) else batch
        for (name, weight), term, sharpen in zip(self.weights.items(), self.terms.values(), self.sharpen, strict=True):
            with torch.set_grad_enabled(torch.is_grad_enabled() and not is_never_trained(weight)):
                result = term(sr, sharp if sharpen else batch)
            value, readings = result if isinstance(result, tuple) else (result, {})
            terms[name] = weight_at(weight, batch.step) * value
            terms |= {f"{name}_{suffix}": reading for suffix, reading in readings.items()}
        return terms
