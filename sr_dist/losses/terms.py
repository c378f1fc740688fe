"""`content: {mse: 1.0, vgg: {weight: 1.0, layers: conv5_4}}` -> named, weighted terms of a loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from sr_dist import plugins


class ContentTerms(nn.Module):
    """Each term is one file in `losses/content/`; the value under its name is already weighted."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        super().__init__()
        self.weights: dict[str, float] = {}
        self.terms = nn.ModuleDict()
        for name, section in content.items():
            options = dict(section) if isinstance(section, Mapping) else {"weight": section}
            self.weights[name] = float(options.pop("weight", 1.0))
            module, config = plugins.resolve("sr_dist.losses.content", name, options, f"objective.content.{name}")
            self.terms[name.replace(".", "-")] = module.build(config)

    def forward(self, sr: Tensor, hr: Tensor) -> dict[str, Tensor]:
        return {
            name: weight * term(sr, hr) for (name, weight), term in zip(self.weights.items(), self.terms.values(), strict=True)
        }
