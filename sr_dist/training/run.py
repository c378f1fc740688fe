"""A run in progress: what it is made of, what of it is saved, and how it is taken up again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from sr_dist.core import ranks
from sr_dist.data.images import Batches
from sr_dist.data.loader import Stream
from sr_dist.evaluation.metric_set import Metrics
from sr_dist.models import trained
from sr_dist.models.tiling import Upscale, for_any_colour
from sr_dist.recipe.labels import Labels, labels_of
from sr_dist.recipe.sections import Part, Recipe
from sr_dist.training import checkpoint
from sr_dist.training.ddp import Engine
from sr_dist.training.ema import Ema
from sr_dist.training.log import Log, Trace
from sr_dist.training.step import Precision
from sr_dist.training.stop_request import StopRequest
from sr_dist.training.throughput import Clock
from sr_dist.training.watchdog import Watchdog


class Findings(NamedTuple):
    """What a validation found."""

    images: int
    metrics: dict[str, float | None]
    said: str  # in a line
    rows: Sequence[Mapping[str, Any]] = ()  # a row per image, where there are scores of images


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
    metrics: Metrics
    log: Log
    trace: Trace
    clock: Clock
    stop: StopRequest
    writer: checkpoint.Writer
    watchdog: Watchdog
    step: int = 0
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def primary(self) -> str:
        return next(iter(self.phases))

    @property
    def upscaler(self) -> Upscale:
        """The EMA on pictures, which are colour even where the network is grey."""
        return for_any_colour(self.ema.network, self.recipe.channels, self.recipe.scale)

    @property
    def labels(self) -> Labels:
        """What the classifier that trains tells apart."""
        wanted = self.recipe.objective.options["labels"]
        return labels_of(wanted, self.stream.source.parts[0].reader.shards.label_names, "objective.labels")

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def precision(self) -> Precision:
        return Precision(self.recipe.precision, self.device.type)


def save(run: Run) -> None:
    """Copies everything to the host; the first rank writes it in the background. All ranks must call."""
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, engine in run.phases.items():
        state = engine.state()
        tensors[name], tensors[f"{name}.optimizer"] = _on_host(state["weights"]), _on_host(state["optimizer"])
    tensors[f"{run.primary}.ema"] = _on_host(run.ema.gather().state_dict())
    if ranks.is_first():
        run.writer.begin(_writing(run, tensors))
    check_saves(run)


def _on_host(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies that training will not change; only the first rank needs them."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in named.items()} if ranks.is_first() else {}


def _writing(run: Run, tensors: dict[str, dict[str, Tensor]]) -> Callable[[], None]:
    """What the writer does later with what is known now."""
    recipe, folder, step = run.recipe, run.recipe.folder / "checkpoints", run.step
    state = {
        **run.state,
        "step": step,
        "position": run.stream.position_after(step),
        "ema_updates": run.ema.updates,
        "skipped": {name: int(engine.skipped_in_all) for name, engine in run.phases.items()},
        "scalers": {name: engine.scaler_state() for name, engine in run.phases.items()},
    }
    part: Part = getattr(recipe, run.primary)
    section = {"name": part.name, **part.options}
    if run.primary == "classifier":
        said = trained.classifier_metadata(section, run.labels, recipe.data.crop)
    else:
        said = trained.metadata(section, recipe.scale)
    about = {f"{run.primary}.ema": said}
    best = run.state["best"]["step"] if run.state["best"] else None

    def write() -> None:
        checkpoint.save(folder, step, tensors, state, about)
        run.log.checkpoint(folder / f"{step:07d}", step, best == step)
        checkpoint.prune(folder, recipe.keep, best)

    return write


def check_saves(run: Run, last: bool = False) -> None:
    """Ends the run, on all ranks, if a save that has ended went wrong and the recipe says so, or it was the last.
    All ranks must call."""
    problem = ranks.from_first(run.writer.problem())
    if problem and (last or run.recipe.on_save_error == "stop"):
        raise checkpoint.SaveFailed(problem)


def resume(run: Run, found: checkpoint.Checkpoint) -> None:
    """All ranks must call: everyone reads the files."""
    state = dict(found.state)
    run.ema.load(found.tensors(f"{run.primary}.ema"), state["ema_updates"])
    for name, engine in run.phases.items():
        engine.load({"weights": found.tensors(name), "optimizer": found.tensors(f"{name}.optimizer")})
        engine.load_scaler(state["scalers"][name])
        engine.skipped_in_all += state["skipped"][name]
    run.step = found.step
    run.state = {**run.state, **{key: state[key] for key in ("best", "validated")}}


def close(run: Run, code: int = 0) -> None:
    """Ends everything that a run holds, and the process group. All ranks must call."""
    run.stream.close()
    run.stop.close()
    run.watchdog.close()
    run.log.close(code=code)
    ranks.wait()
    run.accelerator.end_training()
    ranks.leave()
