"""The launcher's environment variables. Importing this module does not load torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sr_dist.core import zero_options
from sr_dist.core.errors import UserError
from sr_dist.core.run_layout import COLLECTIVES


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


def check() -> None:
    """Refuses variables that no launcher sets together, such as a RANK that is left over from another job: a process that takes
    itself for a rank takes no lock and waits for ranks that do not exist."""
    size = num_ranks()
    for name in ("RANK", "LOCAL_RANK"):
        stated = _number(name)
        if stated is None:
            if size > 1:
                raise UserError(f"WORLD_SIZE: it is {size}, but {name} is not set; {_ADVICE.format('WORLD_SIZE')}")
        elif stated >= size or (name == "LOCAL_RANK" and _number("WORLD_SIZE") is None):
            world = "not set" if _number("WORLD_SIZE") is None else size
            raise UserError(f"{name}: it is {stated}, but WORLD_SIZE is {world}; {_ADVICE.format(name)}")
    if size > 1 and "MASTER_ADDR" not in os.environ:
        raise UserError(f"WORLD_SIZE: it is {size}, but MASTER_ADDR is not set; {_ADVICE.format('WORLD_SIZE')}")
    if under_deepspeed() and _on_cpu():  # the training would be one of DDP
        raise UserError(
            "ACCELERATE_USE_CPU: accelerate leaves DeepSpeed out where it is set; unset it. ZeRO on the CPU: "
            "DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES= accelerate launch --config_file ..."
        )


_ADVICE = "a launcher sets WORLD_SIZE, RANK and LOCAL_RANK together; unset {}, or start the command with a launcher"


def _number(name: str) -> int | None:
    """The value of a variable; None where it is not set, which accelerate also writes as -1."""
    text = os.environ.get(name, "-1")
    if text != "-1" and not text.isdecimal():
        raise UserError(f"{name}: '{text}' is not a number; {_ADVICE.format(name)}")
    return None if text == "-1" else int(text)


def record_collectives(folder: Path) -> None:
    """NCCL's flight recorder: where a collective gets no answer, each rank writes its last ones into the run folder.

    Call before the process group begins. What a user has set stays, also under the name that torch gave it later. What this
    process has set for an earlier run follows the run.
    """
    for names, value in {
        ("TORCH_NCCL_TRACE_BUFFER_SIZE", "TORCH_FR_BUFFER_SIZE"): "2000",  # collectives
        ("TORCH_NCCL_DUMP_ON_TIMEOUT",): "1",
        ("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", "TORCH_FR_DUMP_TEMP_FILE"): str(
            folder.absolute() / COLLECTIVES
        ),  # torch adds the rank
    }.items():
        if all(os.environ.get(name) in (None, _own_values.get(name)) for name in names):
            os.environ[names[0]] = _own_values[names[0]] = value


_own_values: dict[str, str] = {}  # of variables that this process has set


def available_cores() -> int:
    """The cores that this process may use. macOS knows only how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def rank() -> int:
    return _number("RANK") or 0


def local_rank() -> int:
    """The rank's number on its node."""
    return _number("LOCAL_RANK") or 0


def prints_mistakes() -> bool:
    """Whether this process prints the mistakes that all ranks make alike: one on each node, and every one that no launcher
    started."""
    try:
        check()
    except UserError:
        return True
    return local_rank() == 0


def node() -> int | None:
    """The node's number, where the launcher states it."""
    return _number("GROUP_RANK")


def num_local_ranks() -> int:
    """The number of ranks on this node; without a statement, all."""
    return _number("LOCAL_WORLD_SIZE") or num_ranks()


def num_ranks() -> int:
    return _number("WORLD_SIZE") or 1


def under_launcher() -> bool:
    """Whether `accelerate launch` or `torchrun` has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ


def under_deepspeed() -> bool:
    """Whether the launcher's configuration uses DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def zero_stage() -> int:
    """Of DeepSpeed; 0 without it."""
    return zero_options.stated().stage if under_deepspeed() else 0


def mixed_precision() -> str | None:
    """What `accelerate launch --mixed_precision` says; None for `no`, which it also says by default."""
    stated = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    return None if stated == "no" else stated


def uses_cuda() -> bool:
    """Whether there is a GPU and the launcher does not forbid it."""
    import torch  # loads slowly, and commands that do without torch import this module

    return torch.cuda.is_available() and not _on_cpu()


def _on_cpu() -> bool:
    """As accelerate reads it."""
    return os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("true", "1", "yes", "y", "on", "t")
