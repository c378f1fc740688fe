"""Number formats inside a step."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor


def without_autocast(images: Tensor) -> AbstractContextManager[Any]:
    """Around arithmetic that needs more digits than bf16 has. Autocast does not know the meta device, which has no digits."""
    return torch.autocast("cpu" if images.is_meta else images.device.type, enabled=False)
