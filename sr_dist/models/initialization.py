"""Initial weights that several networks share."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


def kaiming(modules: Iterable[nn.Module], factor: float) -> None:
    """Convolutions get Kaiming's normal weights (fan in, gain sqrt 2) times the factor, and biases of zero.

    ESRGAN's 0.1: residual branches whisper at first, so that a deep network without normalisation starts as nearly
    nothing but its skips.
    """
    for module in modules:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            with torch.no_grad():
                module.weight.mul_(factor)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
