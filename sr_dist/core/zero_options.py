"""What the launcher's configuration says of DeepSpeed: options of ZeRO that are taken over. Others are refused by name, because
the loop does in its own way what they are for, or because nobody has tried them on two networks.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sr_dist.core.errors import UserError, nearest
from sr_dist.core.files import open_regular
from sr_dist.core.json_text import parse_json

STAGE = "zero_optimization.stage"
OFFLOAD = "zero_optimization.offload_optimizer"

TAKEN = {
    "zero_optimization": (
        "allgather_bucket_size", "allgather_partitions", "contiguous_gradients", "overlap_comm", "reduce_bucket_size",
        "reduce_scatter", "round_robin_gradients", "stage3_max_live_parameters", "stage3_max_reuse_distance",
        "stage3_prefetch_bucket_size", "sub_group_size",
    ),
    "": ("comms_logger", "dump_state", "memory_breakdown", "wall_clock_breakdown"),
}  # fmt: skip
"""Passed to DeepSpeed as they are."""

RECIPE = {
    "gradient_accumulation_steps": "accumulate", "train_batch_size": "data.batch", "optimizer": "optimizer",
    "train_micro_batch_size_per_gpu": "data.batch and accumulate", "gradient_clipping": "optimizer.clip", "scheduler": "schedule",
    "fp16": "precision", "bf16": "precision", "amp": "precision", "torch_autocast": "precision",
    "activation_checkpointing": "checkpointing", "wandb": "log.wandb",
    "zero_optimization.stage3_param_persistence_threshold": "zero.persistence_threshold",
}  # fmt: skip
"""Keys of the recipe that say what an option would say."""

WITHOUT_EFFECT = (
    "steps_per_print",
    "zero_allow_untested_optimizer",
    "zero_optimization.stage3_gather_16bit_weights_on_model_save",
)
"""accelerate writes them itself, or they are always so."""

FILE = "ACCELERATE_DEEPSPEED_CONFIG_FILE"
VARIABLES = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "gradient_accumulation_steps",
    "ACCELERATE_GRADIENT_CLIPPING": "gradient_clipping",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": STAGE,
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": f"{OFFLOAD}.device",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "zero_optimization.offload_param.device",
}
"""accelerate's variables and the options that they stand for."""


@dataclass(frozen=True)
class Stated:
    stage: int
    offload: dict[str, Any] | None  # of the optimizer, into the host's memory
    passed: dict[str, Any]

    def add_to(self, config: dict[str, Any]) -> None:
        for key, value in self.passed.items():
            section, _, name = key.rpartition(".")
            (config[section] if section else config)[name] = value


def stated() -> Stated:
    """Refuses what would be dropped."""
    options = {
        key: value for key, value in _options().items() if value not in ("auto", None, "none") and key not in WITHOUT_EFFECT
    }
    stage = options.pop(STAGE, 2)
    if str(stage) not in ("0", "1", "2", "3"):
        raise UserError(f"{_named(STAGE)}: '{stage}' is no stage of ZeRO; choose from 0, 1, 2, 3")
    offload = {name: options.pop(f"{OFFLOAD}.{name}") for name in ("device", "pin_memory") if f"{OFFLOAD}.{name}" in options}
    if offload.get("device", "cpu") != "cpu":
        raise UserError(
            f"{_named(OFFLOAD + '.device')}: the optimizer can be kept in the memory of the cpu, not of '{offload['device']}'"
        )
    for key, value in options.items():
        _check(key, value)
    passed = {key: value for key, value in options.items() if _is_taken(key)}
    return Stated(int(stage), offload if "device" in offload else None, passed)


def _is_taken(key: str) -> bool:
    section, _, name = key.rpartition(".")
    return name in TAKEN.get(section, ())


def _check(key: str, value: Any) -> None:
    if _is_taken(key) or (key == "gradient_accumulation_steps" and str(value) == "1"):
        return
    for recipes in (key, key.partition(".")[0]):
        if recipes in RECIPE:
            raise UserError(f"{_named(key)}: remove it; it is the recipe's to say, with {RECIPE[recipes]}")
    taken = [f"{section}.{option}" if section else option for section, options in TAKEN.items() for option in options]
    raise UserError(f"{_named(key)}: this option of DeepSpeed is not used{nearest(key, taken)}")


def _options() -> dict[str, Any]:
    """Every option with its dotted name, from the file or from accelerate's variables."""
    if (file := os.environ.get(FILE, "none")) == "none":
        return {key: os.environ[name] for name, key in VARIABLES.items() if name in os.environ}
    try:
        with open_regular(Path(file)) as opened:
            config = parse_json(opened.read())
    except (OSError, ValueError) as problem:
        raise UserError(f"{FILE}: {file} is not readable as JSON: {problem}") from None
    if not isinstance(config, dict) or not isinstance(config.get("zero_optimization"), dict):
        raise UserError(f"{FILE}: {file} has no section zero_optimization")
    return dict(_dotted(config, ""))


def _dotted(section: dict[str, Any], prefix: str) -> list[tuple[str, Any]]:
    """What is taken whole, such as `comms_logger`, stays whole; what is switched off is left out."""
    options = []
    for name, value in section.items():
        if not isinstance(value, dict) or f"{prefix}{name}" in TAKEN[""]:
            options.append((f"{prefix}{name}", value))
        elif value.get("enabled", True) not in (False, "auto") and value.get("device", "cpu") not in (None, "none"):
            options += _dotted(value, f"{prefix}{name}.")
    return options


def _named(key: str) -> str:
    """Where the user has written an option."""
    file = os.environ.get(FILE, "none")
    return next(name for name, option in VARIABLES.items() if option == key) if file == "none" else f"{file}: {key}"
