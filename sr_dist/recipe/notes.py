"""Keys that change nothing, or not what was meant, for the log of a complete recipe. No torch, no disk, no network."""

from __future__ import annotations

from collections.abc import Iterator

from sr_dist.recipe.sections import Recipe


def notes(recipe: Recipe) -> Iterator[str]:
    warmup = recipe.discriminator_training.warmup
    if recipe.discriminator and warmup >= recipe.steps:
        yield f"warning: discriminator_training.warmup: {warmup} of {recipe.steps} steps, so the generator is never trained"
    if recipe.health.on_collapse == "rollback" and recipe.keep.best and not recipe.validate_every:
        yield "warning: health.on_collapse: without validations (validate_every) no checkpoint is the best to go back to"
    yield from of_penalties(recipe)


def of_penalties(recipe: Recipe) -> Iterator[str]:
    options = recipe.objective.options
    penalized = any(options.get(name) for name in ("r1_weight", "r2_weight"))
    for name, unused in (("r1_every", 1), ("r1_noise", 0)):
        if options.get(name, unused) != unused and not penalized:
            yield f"warning: objective.{name}: without objective.r1_weight there is no penalty, and it changes nothing"
    if penalized and recipe.discriminator and recipe.discriminator.options.get("norm") == "batch":
        yield "warning: discriminator.norm: with batch, logits depend on other images, which R1 does not mean; use none"
