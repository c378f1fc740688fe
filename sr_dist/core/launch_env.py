"""The launcher's environment variables. Importing this module does not load torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Launch:
    """How a recipe is launched. Networks and objectives can refuse a launch that they do not support (`refuses`)."""

    backend: Literal["ddp", "deepspeed"] = "ddp"
    stage: int = 0  # of ZeRO; 0 without DeepSpeed
    ranks: int = 1
    cuda: bool = False
    compiled: bool = False  # by torch.compile


def launch(compiled: bool = False) -> Launch:
    """The launch of this process."""
    return Launch("deepspeed" if under_deepspeed() else "ddp", zero_stage(), num_ranks(), uses_cuda(), compiled)


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """The rank's number on its node."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def node() -> int | None:
    """The node's number, where the launcher states it."""
    return int(os.environ["GROUP_RANK"]) if "GROUP_RANK" in os.environ else None


def num_local_ranks() -> int:
    """The number of ranks on this node; without a statement, all."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", num_ranks()))


def num_ranks() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def under_deepspeed() -> bool:
    """Whether the launcher's configuration uses DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def zero_stage() -> int:
    return int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")) if under_deepspeed() else 0


def uses_cuda() -> bool:
    """Whether there is a GPU and the launcher does not forbid it."""
    import torch  # loads slowly, and commands that do without torch import this module

    return torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "false").lower() not in ("true", "1")
