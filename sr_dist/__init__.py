"""Distributed training of super-resolution GANs.

>>> import sr_dist
>>> sr = sr_dist.load("runs/x")                                 # a run, a weights file, or published weights by their name
>>> large = sr("photo.png")                                     # a path, PIL, numpy, a tensor, or a list of them
>>> report = sr_dist.evaluate("runs/x", data="data/set5")       # the report's dictionary
>>> batches = sr_dist.Shards("data/mine").batches(crop=96)      # uint8 batches (B, C, H, W) without end
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sr_dist.core.version import __version__ as __version__

if TYPE_CHECKING:
    from sr_dist import evaluate as evaluate
    from sr_dist.core.errors import UserError as UserError
    from sr_dist.data.endless_batches import Shards as Shards
    from sr_dist.models.upscaler import Upscaler as Upscaler
    from sr_dist.models.upscaler import load as load

__all__ = ["Shards", "Upscaler", "UserError", "__version__", "evaluate", "load"]
_HOMES = {
    "load": "sr_dist.models.upscaler",
    "Upscaler": "sr_dist.models.upscaler",
    "Shards": "sr_dist.data.endless_batches",
    "UserError": "sr_dist.core.errors",
}


def __getattr__(name: str) -> Any:
    """Loads what is used, when it is used: importing the package loads no torch."""
    if name == "evaluate":
        return importlib.import_module("sr_dist.evaluate")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sr_dist' has no attribute '{name}'; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
