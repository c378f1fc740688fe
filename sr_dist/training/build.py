"""From a recipe to everything that `loop.fit` uses: devices, networks in their phases, data, log, and where it left off."""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import json
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import nn

from sr_dist.core import config, plugins, ranks
from sr_dist.core.errors import UserError
from sr_dist.core.plugins import PACKAGES
from sr_dist.data.format import Shards
from sr_dist.data.images import Batches, open_images
from sr_dist.data.loader import Stream
from sr_dist.data.open_data import cache_for, open_training_sets
from sr_dist.data.select import portion_of
from sr_dist.data.startup_report import outlook
from sr_dist.evaluation.distances.own_extractor import open_own
from sr_dist.evaluation.metric_set import open_metrics
from sr_dist.models import trained
from sr_dist.recipe.sections import Data, Part, Recipe, whole_weights
from sr_dist.training import checkpoint, ddp, deepspeed, run_folder
from sr_dist.training.ema import Ema
from sr_dist.training.log import Log, Trace
from sr_dist.training.run import Run, resume
from sr_dist.training.stop_request import StopRequest
from sr_dist.training.throughput import Clock
from sr_dist.training.watchdog import Watchdog

VALIDATION_BATCH = 8  # images of one size that validation restores together


def set_up(recipe: Recipe) -> Run:
    """All ranks must call."""
    accelerator = ranks.open_accelerator(recipe.precision)
    torch.set_float32_matmul_precision("high" if recipe.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = recipe.tf32
    resumed = _newest(recipe)
    shards = open_training_sets(recipe.data)
    digest = data_digest(recipe.data, shards)
    check_same_data(recipe, shards, digest, resumed)
    torch.manual_seed(recipe.seed)  # every rank builds the same networks
    objective = build_objective(recipe).to(accelerator.device)
    torch.manual_seed(recipe.seed)  # and the same ones with and without a term that builds networks of its own
    notes: list[str] = []
    networks = {phase: phase_network(recipe, phase, resumed is not None, notes) for phase in objective.phases}
    stream = open_stream(recipe, shards, accelerator.device, *((resumed.state["position"], resumed.step) if resumed else (0, 0)))
    validation = open_validation(recipe)
    chosen, own = (recipe.metrics, open_own(recipe.extractor, accelerator.device)) if validation else ((), None)
    metrics = open_metrics(chosen, accelerator.device, own=own, download=recipe.allow_download)
    log = open_log(recipe, resumed)  # from here on the run folder is this run's
    ema = Ema(networks[objective.phases[0]], recipe.ema.decay)
    ema.network.to(accelerator.device)  # bare for good: what follows happens to the trained networks only
    networks = {phase: prepared(network, recipe, phase, accelerator.device) for phase, network in networks.items()}
    backend = deepspeed if accelerator.distributed_type == DistributedType.DEEPSPEED else ddp
    phases: dict[str, Any] = {name: backend.Engine(accelerator, network, recipe, name) for name, network in networks.items()}
    ema.follow(phases[objective.phases[0]])
    folder = recipe.folder
    run = Run(
        recipe, accelerator, objective, phases, ema, stream, validation, metrics, log,
        Trace(folder / "trace", ranks.rank(), recipe.data.trace), Clock(accelerator.device.type == "cuda"), StopRequest(folder),
        checkpoint.Writer(log.say), Watchdog(folder, ranks.rank(), recipe.hang_timeout),
        state={"manifest": digest, "best": None, "validated": True},
    )  # fmt: skip
    if resumed:
        resume(run, resumed)
    for note in notes:
        log.say(note)
    _introduce(run)
    return run


def data_digest(data: Data, shards: list[Shards]) -> str:
    """Names the samples and their order: of one data set its own, of several theirs and their weights."""
    if len(shards) == 1:
        return shards[0].manifest.digest
    mixed = list(zip((part.manifest.digest for part in shards), whole_weights(data.weights), strict=True))
    return hashlib.sha256(json.dumps(mixed).encode()).hexdigest()


def check_same_data(recipe: Recipe, shards: list[Shards], digest: str, resumed: checkpoint.Checkpoint | None) -> None:
    if len(set(ranks.gather(digest))) > 1:
        raise UserError("data.train: ranks see different shards; were they changed just now?")
    if resumed and resumed.state["manifest"] != digest and "data.train" not in recipe.resume.allow:
        raise UserError(
            f"data.train: {what_differs(recipe, shards, resumed.state['manifest'])}; "
            f"--resume.allow=data.train says that this is meant"
        )


def what_differs(recipe: Recipe, shards: list[Shards], begun: str) -> str:
    """Between data.train and the data that a run began with, `begun` by their digest."""
    before, now = config.typed(Recipe, config.read(recipe.folder / "recipe.yaml")).data, recipe.data
    opened = dict(zip(now.sources, shards, strict=True))
    if set(before.sources) != set(now.sources):
        return f"{now.train} holds other shards than {before.train}, which the run was trained on"
    if data_digest(before, [opened[source] for source in before.sources]) == begun:
        return f"the weights or the order of the data sets were {before.train} when the run began and are {now.train}"
    return f"the shards in {now.train} are not those that the run was trained on; they were built again or changed"


def open_log(recipe: Recipe, resumed: checkpoint.Checkpoint | None) -> Log:
    """Makes the run folder tell of this run, and of no step after its checkpoint. All ranks must call."""
    if ranks.is_first():
        run_folder.open_folder(recipe.folder, recipe, ranks.size())
        lists = (path for name in ("trace", "substituted") for path in sorted((recipe.folder / name).glob("rank-*.jsonl")))
        for path in (recipe.folder / "metrics.jsonl", *lists):
            run_folder.drop_later_rows(path, resumed.step if resumed else 0)
    ranks.wait()
    return Log(recipe, speaks=ranks.is_first())


def _newest(recipe: Recipe) -> checkpoint.Checkpoint | None:
    """The checkpoint that rank 0 finds, for all ranks. All ranks must call."""
    found = None
    if ranks.is_first():
        found = checkpoint.newest(recipe.folder / "checkpoints", lambda text: print(text, flush=True))
    return ranks.from_first(found)


def build_objective(recipe: Recipe) -> Any:
    module, config = plugins.resolve(PACKAGES["objective"], recipe.objective.name, recipe.objective.options, "objective")
    return module.Objective(config)


def build_network(part: Part, kind: str, scale: int) -> nn.Module:
    section = {"name": part.name, **part.options}
    return trained.build_classifier(section) if kind == "classifier" else trained.build(PACKAGES[kind], section, scale, kind)


def phase_network(recipe: Recipe, phase: str, resuming: bool, notes: list[str]) -> nn.Module:
    """A network with its starting weights; frozen parts no longer require gradients."""
    part = getattr(recipe, phase)
    if resuming and "weights" in part.options:
        part = part.with_options(weights="none")  # the checkpoint's come instead
    network = build_network(part, phase, recipe.scale)
    start = getattr(recipe.init, phase, None)
    if start and not resuming:
        section = {"name": part.name, **part.options}
        notes.append(trained.start(network, section, start, phase, f"init.{phase}", recipe.init.partial))
    if phase != "discriminator" and recipe.init.freeze:
        _freeze(network, recipe.init.freeze)
    return network


def prepared(network: nn.Module, recipe: Recipe, phase: str, device: torch.device) -> nn.Module:
    """The network as it trains: memory layout, synchronised normalisation, activations made again, compiled."""
    if device.type == "cuda" and ranks.size() > 1:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    network = network.to(device)
    if recipe.channels_last:
        network = network.to(memory_format=torch.channels_last)
    if phase != "discriminator" and recipe.checkpointing:
        remake_activations(network, recipe.checkpointing)
    if recipe.compile:
        network.compile()  # in place: names of parameters stay what they are
    return network


def remake_activations(network: nn.Module, patterns: tuple[str, ...]) -> None:
    """The matching modules keep their inputs only, and run again in the backward pass."""
    from torch.utils.checkpoint import checkpoint as run_again

    names = dict(network.named_modules())
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise UserError(
                f"checkpointing: no module of the network fits '{pattern}'; there are {', '.join(list(names)[1:6])}, ..."
            )
    for name, module in names.items():
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            module.forward = functools.partial(run_again, module.forward, use_reentrant=False)


def _freeze(network: nn.Module, patterns: tuple[str, ...]) -> None:
    names = [name for name, _ in network.named_parameters()]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise UserError(f"init.freeze: no parameter fits '{pattern}'; names are like '{names[0]}', '{names[-1]}'")
    for name, parameter in network.named_parameters():
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)


def build_degradation(recipe: Recipe) -> Any:
    part = recipe.data.degradation
    module, config = plugins.resolve(PACKAGES["degradation"], part.name, part.options, "data.degradation")
    return module.build(config, recipe.scale)


def open_stream(recipe: Recipe, shards: list[Shards], device: torch.device, position: int = 0, done: int = 0) -> Stream:
    """Which stands at a position after so many steps."""
    return Stream(
        shards, recipe.data, seed=recipe.seed, scale=recipe.scale,
        accumulate=recipe.accumulate, steps=recipe.steps, channels=recipe.channels,
        channels_last=recipe.channels_last, position=position, done=done, folder=recipe.folder,
        degrade=build_degradation(recipe), device=device,
    )  # fmt: skip


def open_validation(recipe: Recipe) -> Batches | None:
    data = recipe.data
    if data.split:
        images = open_images(
            data.sources[0], data.validation_limit, "data.train", cache=cache_for(data), portion=portion_of(data, 1)
        )
    elif data.validation:
        images = open_images(data.validation, data.validation_limit, cache=cache_for(data))
    else:
        return None
    return Batches(images, recipe.scale, build_degradation(recipe), VALIDATION_BATCH)


def whole(parameter: nn.Parameter) -> int:
    """Numbers in a parameter, also where ZeRO-3 has left a rank its share of it."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _introduce(run: Run) -> None:
    """The first lines of the log: what trains, on what, from where."""
    recipe = run.recipe
    for name, engine in run.phases.items():
        parameters = list(engine.bare.parameters())
        total, trained = sum(whole(p) for p in parameters), sum(whole(p) for p in parameters if p.requires_grad)
        note = "" if total == trained else f", {trained:,} of them trained"
        run.log.say(f"{name}: {getattr(recipe, name).name}, {total:,} parameters{note}")
    if run.metrics.extractor:
        run.log.say(f"validation's extractor: {run.metrics.extractor.name}, sha256 {run.metrics.extractor.weights_sha256}")
    for line in outlook(run.stream, recipe.data.sources):
        run.log.say(line)
    run.log.say(
        f"on {ranks.size()} {'rank' if ranks.size() == 1 else 'ranks'} ({run.device.type}), precision {recipe.precision}, "
        f"{run.stream.accumulate} micro-batch(es) per step"
    )
    if run.step:
        run.log.say(f"continuing after step {run.step}")
    run.log.say(f"environment: {json.dumps(run_folder.environment(ranks.size())['packages'])}")
