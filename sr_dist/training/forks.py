"""A new run from a checkpoint of another one. The folder appears by rename, whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sr_dist.core import config, launch_env
from sr_dist.core.errors import UserError
from sr_dist.core.files import sync, write_whole
from sr_dist.core.run_layout import (
    RECIPE,
    checkpoint_folder,
    checkpoint_state,
    parent_of,
    run_id,
    write_run_record,
)  # fmt: skip
from sr_dist.recipe import resume_rules
from sr_dist.recipe.sections import Recipe
from sr_dist.training import checkpoint
from sr_dist.training.checkpoint import Checkpoint
from sr_dist.training.run_folder import writing

BOUND = (  # the state of a checkpoint belongs to these
    "scale", "data.channels", "generator", "discriminator", "classifier", "objective.name", "objective.labels", "ema.post_hoc",
    "init.freeze",
)  # fmt: skip


def create(parent: Path, step: int, recipe: Recipe) -> None:
    """Creates the run folder of `recipe` from a checkpoint of `parent`, unless this fork exists. Every rank calls, before the
    ranks meet: all refuse alike, the first one writes."""
    identity = run_id(parent)
    if identity is None:
        raise UserError(f"RUN: '{parent}' was trained by sr_dist 0.2.0 and has no id; continue it once with sr_dist.train")
    origin = {"id": identity, "step": step}
    if (recipe.folder / RECIPE).exists():
        if launch_env.rank() == 0 and parent_of(recipe.folder) != origin:
            raise UserError(f"name: '{recipe.folder}' exists and is no fork of this run at step {step}; take another name")
        return
    if recipe.steps <= step:
        raise UserError(f"steps: {recipe.steps}, but the fork begins at step {step}; give more, such as --steps={2 * step}")
    source = checkpoint_folder(parent, step)
    if problem := checkpoint.damage(source):
        raise UserError(f"at: the checkpoint '{source}' is damaged: {problem}; take another step")
    saved = Checkpoint(step, source, checkpoint_state(source))
    checkpoint.check_identity(parent, step, saved.state)
    checkpoint.check_state(saved)
    check_changes(parent, saved, recipe)
    if launch_env.rank() == 0:
        with writing(recipe.folder):
            _write(saved, origin, recipe)


def check_changes(parent: Path, saved: Checkpoint, recipe: Recipe) -> None:
    """Refuses other values of keys that the state depends on."""
    before: Mapping[str, Any] = config.read(parent / RECIPE)
    if "recipe" in saved.state:
        before = resume_rules.joined(resume_rules.part_of(before, free=True), saved.state["recipe"])
    changes = resume_rules.differences(before, recipe)
    bound = [changes[key] for key in changes if any(key == name or key.startswith(f"{name}.") for name in BOUND)]
    bound += list(changed_optimizers(config.typed(Recipe, before), recipe))
    if bound:
        raise UserError(f"{'; '.join(bound[:6])}: a fork cannot change this, because the checkpoint's state belongs to it")


def changed_optimizers(before: Recipe, after: Recipe) -> Iterator[str]:
    """Networks whose optimizer is of another kind. A section of its own may come or go for the discriminator's."""
    for phase, key in (("generator", "optimizer"), ("discriminator", "discriminator_optimizer")):
        old, new = (recipe.optimizer_of(phase).name for recipe in (before, after))
        if old != new and (phase == "generator" or after.discriminator):
            yield f"{key}.name: was {old}, is {new}"


def _write(saved: Checkpoint, origin: Mapping[str, Any], recipe: Recipe) -> None:
    folder = recipe.folder
    temporary = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(temporary, ignore_errors=True)
    identity = secrets.token_hex(16)
    fixed = resume_rules.part_of(config.parse(config.text(recipe)), free=False)
    state = {**saved.state, "run": identity, "recipe": fixed}
    if state["best"] and state["best"]["step"] != saved.step:
        state["best"] = None  # that checkpoint is the parent's
    for key in ("last_finite", "last_saved", "last_healthy"):
        if state.get(key) != saved.step:
            state[key] = None
    try:
        checkpoint.copy(saved, temporary, state)
        write_run_record(temporary, identity, parent=dict(origin), rollbacks=saved.state.get("rollbacks", []))
        write_whole(temporary / RECIPE, config.text(recipe).encode())
        if folder.exists() and not os.listdir(folder):
            folder.rmdir()
        os.rename(temporary, folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
