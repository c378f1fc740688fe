"""A run in progress: what it is made of, what of it is saved, and how it is taken up again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from sr_dist import ranks
from sr_dist.data.stream import Stream
from sr_dist.data.validation import Batches
from sr_dist.engine import checkpoint
from sr_dist.engine.backends.ddp import Engine
from sr_dist.engine.ema import Ema
from sr_dist.engine.log import Clock, Log, Trace
from sr_dist.engine.restore import Upscale, for_any_colour
from sr_dist.engine.signals import StopRequest
from sr_dist.errors import UserError
from sr_dist.models import weights
from sr_dist.recipe import Part, Recipe


@dataclass
class Run:
    """A run in progress. `state` is what checkpoints remember besides tensors."""

    recipe: Recipe
    accelerator: Accelerator
    objective: Any
    phases: dict[str, Engine]  # the first is the network that restores, classifies, ...; a critic comes second
    ema: Ema
    stream: Stream
    validation: Batches | None
    log: Log
    trace: Trace
    clock: Clock
    stop: StopRequest
    step: int = 0
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def primary(self) -> str:
        return next(iter(self.phases))

    @property
    def restore(self) -> Upscale:
        """The EMA on pictures, which are colour even where the network is grey."""
        channels = int(self.recipe.generator.options.get("channels", 3))
        return for_any_colour(self.ema.network, channels, self.recipe.scale)

    @property
    def device(self) -> torch.device:
        return self.accelerator.device


def save(run: Run) -> None:
    """All ranks must call; the first one writes."""
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, engine in run.phases.items():
        state = engine.state()
        tensors[name], tensors[f"{name}.optimizer"] = state["weights"], state["optimizer"]
    tensors[f"{run.primary}.ema"] = run.ema.network.state_dict()
    if ranks.is_first():
        _write(run, tensors)
    ranks.wait()


def _write(run: Run, tensors: dict[str, dict[str, Tensor]]) -> None:
    recipe, folder = run.recipe, run.recipe.folder / "checkpoints"
    state = {
        **run.state,
        "step": run.step,
        "position": run.step * recipe.data.batch,
        "ema_updates": run.ema.updates,
        "scaler": run.phases[run.primary].scaler_state(),
    }
    part: Part = getattr(recipe, run.primary)
    about = weights.metadata({"name": part.name, **part.options}, recipe.scale)
    checkpoint.save(folder, run.step, tensors, state, {f"{run.primary}.ema": about})
    best = run.state["best"]
    checkpoint.prune(folder, recipe.keep, best["step"] if best else None)


def restore(run: Run, found: checkpoint.Checkpoint) -> None:
    """All ranks must call: everyone reads the files."""
    state = dict(found.state)
    if state["manifest"] != run.state["manifest"] and "data.train" not in run.recipe.resume.allow:
        raise UserError(
            f"data.train: '{run.recipe.data.train}' holds other shards than the run was trained on; "
            f"--resume.allow=data.train says that this is meant"
        )
    for name, engine in run.phases.items():
        engine.load({"weights": found.tensors(name), "optimizer": found.tensors(f"{name}.optimizer")})
    run.ema.load(found.tensors(f"{run.primary}.ema"), state["ema_updates"])
    if run.accelerator.scaler is not None and state["scaler"]:
        run.accelerator.scaler.load_state_dict(state["scaler"])
    run.step = found.step
    run.state = {**run.state, **{key: state[key] for key in ("best", "skipped", "validated")}}
