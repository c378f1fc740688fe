"""A run in progress: its parts, what a checkpoint saves of it, and how it resumes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypedDict

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sr_dist.core import ranks
from sr_dist.core.contracts import Objective
from sr_dist.core.lost_writes import LostWrites
from sr_dist.core.run_layout import checkpoint_folder
from sr_dist.data.image_pairs import Batches
from sr_dist.data.loader import Loader
from sr_dist.evaluation.metric_set import Metrics
from sr_dist.models.metadata import classifier_metadata, generator_metadata
from sr_dist.models.tiling import Upscale, adapt_channels
from sr_dist.recipe.labels import Labels, labels_of
from sr_dist.recipe.sections import Part, Recipe
from sr_dist.training import checkpoint
from sr_dist.training.alarms import COLLAPSES, AlarmState, no_alarms
from sr_dist.training.ema import Ema
from sr_dist.training.engine import Engine
from sr_dist.training.health import Observer
from sr_dist.training.host_copies import on_host
from sr_dist.training.log import Log, Trace
from sr_dist.training.not_finite import MOST, Trained
from sr_dist.training.power_ema import STEM, PowerEmas, keep_snapshot
from sr_dist.training.step import Precision
from sr_dist.training.stop_request import StopRequest
from sr_dist.training.throughput import Clock
from sr_dist.training.watchdog import Watchdog


class ValidationResult(NamedTuple):
    images: int
    metrics: dict[str, float | None]
    text: str  # one line
    rows: Sequence[Mapping[str, Any]] = ()  # one per image, where images have scores
    reference: Mapping[str, float | None] = {}  # the same metrics of bicubic


class Best(TypedDict):
    """The best value of the metric in `keep.best`."""

    metric: str
    value: float
    step: int
    by: str | None  # sha256 of the extractor's weights; values of different extractors are not compared


class Rollback(TypedDict):
    """A return to an earlier checkpoint, see rollback.py."""

    step: int  # after which the run had collapsed
    to: int  # the checkpoint
    reason: str
    factor: float  # of all rates from then on
    done: bool  # the checkpoints after it were removed


class State(TypedDict):
    """What a checkpoint's state.json carries from one process to the next, beside counters."""

    run: str  # id of the run
    recipe: dict[str, Any]  # its keys that may not change
    manifest: str  # digest of the training data
    best: Best | None
    validated: bool  # False: the validation of the last step was postponed, or is still to come
    alarms: AlarmState
    rollbacks: list[Rollback]  # those before this checkpoint
    logit_gradient: float | None  # of the last step, for discriminator_training.adaptive
    last_saved: int | None  # step of the checkpoint before
    last_healthy: int | None  # step of the last checkpoint that a later row without a sign of a collapse has confirmed
    last_finite: int | None  # step of the last checkpoint at which no gradient or buffer was infinite or not a number


@dataclass
class Run:
    """A run in progress. The first engine trains the generator or the classifier, the second one the discriminator."""

    recipe: Recipe
    accelerator: Accelerator
    objective: Objective
    engines: dict[str, Engine]
    ema: Ema
    loader: Loader
    validation: dict[str, Batches]  # by name of the set; a single one has none
    metrics: Metrics
    log: Log
    trace: Trace
    clock: Clock
    stop: StopRequest
    writer: checkpoint.Writer
    watchdog: Watchdog
    lost: LostWrites
    state: State
    average: nn.Module | None = None  # the EMA's network, where a term of the loss compares with its images
    power_emas: PowerEmas | None = None  # of ema.post_hoc
    reference: dict[str, dict[str, float | None]] = field(default_factory=dict)  # set -> bicubic's metrics, once they are known
    step: int = 0
    observer: Observer | None = None  # of the last step, if its health was measured
    recent: deque[Trained] = field(default_factory=lambda: deque(maxlen=MOST))  # steps since updates were counted
    num_skipped: int = 0  # updates of all networks, as they were last counted

    @property
    def primary(self) -> str:
        """The first phase: `generator` or `classifier`."""
        return next(iter(self.engines))

    @property
    def images(self) -> int:
        """The images seen, also where the batch size has changed."""
        return self.loader.position_after(self.step)

    @property
    def upscaler(self) -> Upscale:
        """The EMA for images of one or three channels, whatever the generator's are."""
        return adapt_channels(self.ema.network, self.recipe.channels, self.recipe.scale)

    @property
    def labels(self) -> Labels:
        """The labels of the classifier that is trained."""
        words = self.recipe.objective.options["labels"]
        return labels_of(words, self.loader.source.data_sets[0].reader.shards.label_names, "objective.labels")

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def precision(self) -> Precision:
        return Precision(self.recipe.precision, self.device.type)


def save(run: Run) -> None:
    """Copies everything to the host; the first rank writes it in the background. All ranks must call."""
    if all(int(engine.skipped) == 0 and int(engine.buffers.refused) == 0 for engine in run.engines.values()):
        run.state["last_finite"] = run.step
    if not set(COLLAPSES) & set(run.state["alarms"]["streaks"]):
        run.state["last_healthy"] = run.state["last_saved"]
    run.state["last_saved"] = run.step
    start = time.perf_counter()  # from here training stands still: the device has finished the step
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, engine in run.engines.items():
        state = engine.state()
        tensors[name], tensors[f"{name}.optimizer"] = _copied(state["weights"]), _copied(state["optimizer"])
    tensors[f"{run.primary}.ema"] = _copied(run.ema.gather().state_dict())
    if run.power_emas:
        tensors[f"{run.primary}.{STEM}"] = _copied(run.power_emas.gather())
    copied = time.perf_counter()
    check_saves(run, begin=lambda: _begin_save(run, tensors))
    run.log.info(
        f"step {run.step} is being saved; training waited {time.perf_counter() - start:.2f} s, "
        f"{copied - start:.2f} s of it for copies"
    )


def _begin_save(run: Run, tensors: dict[str, dict[str, Tensor]]) -> None:
    checkpoint.check_folder(run.recipe.folder, run.state)
    metadata = {f"{run.primary}.{stem}": _metadata(run) for stem in ("ema", STEM)}
    contents = checkpoint.Contents(tensors, _state(run), metadata)
    run.writer.begin(_write_later(run, lambda: checkpoint.save(run.recipe.folder, contents.state["step"], contents)))


def save_validated(run: Run) -> None:
    """Adds the result of the validation to the checkpoint of the same step. All ranks must call."""
    if ranks.from_first(lambda: _begin_amending(run)):
        check_saves(run)
    else:
        save(run)  # the first attempt failed


def _begin_amending(run: Run) -> bool:
    """Returns False where the checkpoint does not exist."""
    checkpoint.check_folder(run.recipe.folder, run.state)
    run.writer.wait()
    state = _state(run)
    if not checkpoint_folder(run.recipe.folder, run.step).is_dir():
        return False
    run.writer.begin(_write_later(run, lambda: checkpoint.amend(run.recipe.folder, state["step"], state)))
    return True


def _copied(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Only the first rank needs copies."""
    return on_host(named) if ranks.is_first() else {}


def _state(run: Run) -> dict[str, Any]:
    return {
        **run.state,
        "step": run.step,
        "position": run.loader.position_after(run.step),
        "ema_updates": run.ema.updates,
        "skipped": {name: int(engine.skipped_total) for name, engine in run.engines.items()},
        "scalers": {name: engine.scaler_state() for name, engine in run.engines.items()},
    }


def _write_later(run: Run, write_checkpoint: Callable[[], object]) -> Callable[[], None]:
    """A function that writes a checkpoint of the run as it is now, and then does what follows a checkpoint."""
    recipe, step, validated = run.recipe, run.step, run.state["validated"]
    best = run.state["best"]["step"] if run.state["best"] else None
    healthy = run.state["last_healthy"] if recipe.health.on_collapse == "rollback" else None
    good = (run.state["last_finite"], healthy)

    def write() -> None:
        write_checkpoint()
        keep_snapshot(recipe, step)
        if validated:  # else trackers would get it twice
            run.log.checkpoint(checkpoint_folder(recipe.folder, step), step, best == step)
        checkpoint.prune(recipe.folder, recipe.keep, best, *good)

    return write


def _metadata(run: Run) -> dict[str, str]:
    """What the weights file says of the network."""
    part: Part = getattr(run.recipe, run.primary)
    section = {"name": part.name, **part.options}
    if run.primary == "classifier":
        return classifier_metadata(section, run.labels, run.recipe.data.crop)
    return generator_metadata(section, run.recipe.scale)


def check_folder(run: Run) -> None:
    """Stops a run whose folder was removed or replaced by that of another run. All ranks must call."""
    ranks.on_first(lambda: checkpoint.check_folder(run.recipe.folder, run.state))


def check_saves(run: Run, last: bool = False, begin: Callable[[], None] = lambda: None) -> None:
    """Raises on all ranks if a finished save failed, and the recipe says so or it was the last. `begin` is what the first rank
    does before, in the same message between ranks. All ranks must call."""

    def problem_of_saves() -> str | None:
        begin()
        problem = run.writer.problem()
        if last and not checkpoint_folder(run.recipe.folder, run.step).is_dir():
            problem = problem or f"there is no checkpoint of step {run.step}: it could not be written"  # a save that was forgiven
        if problem or last:
            checkpoint.check_folder(run.recipe.folder, run.state)
        return problem

    problem = ranks.from_first(problem_of_saves)
    if problem and (last or run.recipe.on_save_error == "stop"):
        raise checkpoint.SaveFailed(problem)


def resume(run: Run, saved: checkpoint.Checkpoint) -> None:
    """Loads a checkpoint. All ranks must call: each reads the files."""
    state = saved.state
    run.ema.load(saved.tensors(f"{run.primary}.ema"), state["ema_updates"])
    if run.power_emas:
        run.power_emas.load(saved.tensors(f"{run.primary}.{STEM}"), saved.tensors(run.primary))
    for name, engine in run.engines.items():
        engine.load({"weights": saved.tensors(name), "optimizer": saved.tensors(f"{name}.optimizer")})
        engine.load_scaler(state["scalers"][name])
        engine.skipped_total += state["skipped"][name]
    run.num_skipped = sum(state["skipped"][name] for name in run.engines)
    run.step = saved.step
    run.state["best"], run.state["validated"] = state["best"], state["validated"]
    run.state["last_finite"], run.state["last_saved"] = state.get("last_finite"), state.get("last_saved")
    run.state["last_healthy"], run.state["logit_gradient"] = state.get("last_healthy"), state.get("logit_gradient")
    run.state["alarms"] = state.get("alarms", no_alarms())


def release(run: Run, code: int = 0) -> None:
    """Ends everything that a run holds. All ranks must call."""
    run.loader.close()
    run.stop.close()
    run.watchdog.close()
    run.log.close(code=code)


def close(run: Run, code: int = 0) -> None:
    """The same, and ends the process group. All ranks must call."""
    release(run, code)
    ranks.barrier()
    run.accelerator.end_training()
    ranks.destroy_group()
