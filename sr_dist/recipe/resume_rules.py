"""The keys that may differ between a run and its resumption. It imports parts only where an older recipe lacks options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from sr_dist.core import config
from sr_dist.core.errors import UserError, nearest
from sr_dist.recipe import checks
from sr_dist.recipe.sections import Recipe

# These keys may differ. A section stands for all its keys. Starting weights are not used on resumption. A renamed folder is the
# same run: its id is in run.json and in its checkpoints.
FREE = (
    "name", "steps", "runs", "accumulate", "precision", "compile", "channels_last", "checkpointing", "tf32", "cudnn_benchmark",
    "data.workers", "data.trace", "data.train", "data.samples", "data.on_corrupt", "data.cache", "data.cache_gb",
    "data.fetch_at_once", "data.fetch_ahead", "data.validation", "data.validation_limit", "save_every", "keep",
    "validate_every", "validate_first", "sample_images", "metrics", "log_every", "log", "health", "zero", "init.generator",
    "init.discriminator", "init.classifier", "allow_download", "max_skipped", "on_save_error", "hang_timeout", "resume",
)  # fmt: skip
WARNED = (  # they change results slightly
    "precision", "compile", "channels_last", "checkpointing", "tf32", "cudnn_benchmark", "accumulate",
)  # fmt: skip


def part_of(tree: Mapping[str, Any], free: bool, prefix: str = "") -> dict[str, Any]:
    """The keys of a recipe that may differ (`free`), or the others."""
    part: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and path not in FREE and any(name.startswith(f"{path}.") for name in FREE):
            part[key] = part_of(value, free, f"{path}.")
        elif (path in FREE) == free:
            part[key] = value
    return part


def joined(free: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe from its two parts."""
    sections = {key: {**value, **fixed[key]} for key, value in free.items() if isinstance(value, dict) and key in fixed}
    return {**free, **fixed, **sections}


def check_allowed(recipe: Recipe) -> None:
    """The keys in `resume.allow` exist."""
    known = config.flatten(recipe.model_dump(mode="json"))
    known |= {key.rsplit(".", i)[0]: None for key in known for i in range(1, key.count(".") + 1)}
    for key in recipe.resume.allow:
        if key not in known:
            raise UserError(f"resume.allow: no key '{key}'{nearest(key, known)}")


def forbidden_changes(changes: Iterable[str], allowed: Iterable[str]) -> list[str]:
    """The keys of `changes` that may not differ, and that nobody has allowed."""
    names = (*FREE, *allowed)
    return [key for key in changes if not any(key == name or key.startswith(f"{name}.") for name in names)]


def differences(before: Mapping[str, Any], after: Recipe) -> dict[str, str]:
    """Every key whose value differs, with `key: was X, is Y`. A key that is missing in an older file had its default, also that
    of a part."""
    stated = config.typed(Recipe, before)
    old, new = (config.flatten(config.parse(config.text(recipe))) for recipe in (stated, after))
    if new.keys() - old.keys():
        with suppress(UserError):  # an option that is gone by now differs in any case
            defaults = config.flatten(config.parse(config.text(checks.with_defaults(stated))))
            old |= {key: defaults[key] for key in new.keys() - old.keys() if key in defaults}
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    return {key: f"{key}: was {old.get(key)}, is {new.get(key)}" for key in keys}
