"""Initial weights that several networks share."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


def kaiming(modules: Iterable[nn.Module], factor: float) -> None:
    """Convolutions get Kaiming normal weights (fan in, gain sqrt 2) times the factor, and zero biases.

    With ESRGAN's 0.1 the residual branches start small, so a deep network without normalization starts close to its skip
    connections.
    """
    for module in modules:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            with torch.no_grad():
                module.weight.mul_(factor)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
