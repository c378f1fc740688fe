"""What may differ between a run and its resumption, and what does. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sr_dist.core import config
from sr_dist.core.errors import UserError, nearest
from sr_dist.recipe.sections import Recipe

# May differ between a run and its resumption; a section stands for all its keys. Starting weights are of no more use then.
FREE = (
    "steps", "runs", "accumulate", "precision", "compile", "channels_last", "checkpointing", "tf32", "data.workers", "data.trace",
    "data.train", "data.on_corrupt", "data.cache", "data.cache_gb", "data.validation", "data.validation_limit", "save_every",
    "keep", "validate_every", "metrics", "log_every", "log", "zero", "init.generator", "init.discriminator",
    "init.classifier", "allow_download", "max_skipped", "on_save_error", "hang_timeout", "resume",
)  # fmt: skip
WARNED = ("precision", "compile", "channels_last", "checkpointing", "tf32", "accumulate")  # the numbers change a little


def check_allowed(recipe: Recipe) -> None:
    """`resume.allow` names keys that exist."""
    known = config.flat(recipe.model_dump(mode="json"))
    known |= {key.rsplit(".", i)[0]: None for key in known for i in range(1, key.count(".") + 1)}
    for key in recipe.resume.allow:
        if key not in known:
            raise UserError(f"resume.allow: no key '{key}'{nearest(key, known)}")


def changed(before: Mapping[str, Any], after: Recipe) -> list[str]:
    """The keys that differ from those a run began with and may not, as `key: was X, is Y`."""
    allowed = (*FREE, *after.resume.allow)

    def may(key: str) -> bool:
        return any(key == name or key.startswith(f"{name}.") for name in allowed)

    return [line for key, line in differences(before, after) if not may(key)]


def differences(before: Mapping[str, Any], after: Recipe) -> list[tuple[str, str]]:
    """Every key whose value differs; keys that the older file did not know yet had their defaults."""
    old = config.flat(config.parse(config.text(config.typed(Recipe, before))))
    new = config.flat(config.parse(config.text(after)))
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    return [(key, f"{key}: was {old.get(key)}, is {new.get(key)}") for key in keys]
