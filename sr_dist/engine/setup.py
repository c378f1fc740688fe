"""From a recipe to everything that `loop.fit` uses: devices, networks in their phases, data, log, and where it left off."""

from __future__ import annotations

import fnmatch
import json
import os
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import nn

from sr_dist import plugins, ranks
from sr_dist.data.format import open_shards
from sr_dist.data.stream import Stream
from sr_dist.data.validation import Batches, open_images
from sr_dist.engine import checkpoint, run_folder
from sr_dist.engine.backends.ddp import Engine
from sr_dist.engine.ema import Ema
from sr_dist.engine.log import Clock, Log, Trace
from sr_dist.engine.run import Run, restore
from sr_dist.engine.signals import StopRequest
from sr_dist.errors import UserError
from sr_dist.models import weights
from sr_dist.recipe import PACKAGES, Part, Recipe

VALIDATION_BATCH = 8  # images of one size that validation restores together


def set_up(recipe: Recipe) -> Run:
    """All ranks must call."""
    accelerator = open_accelerator(recipe.precision)
    first = ranks.is_first()
    folder = recipe.folder
    resumed = _newest(recipe)
    if first:
        run_folder.open_folder(folder, recipe, ranks.size())
        step = resumed.step if resumed else 0
        for path in (folder / "metrics.jsonl", *sorted((folder / "trace").glob("rank-*.jsonl"))):
            run_folder.drop_later_rows(path, step)
    ranks.wait()
    log = Log(recipe, speaks=first)
    torch.manual_seed(recipe.seed)  # every rank builds the same networks
    objective = build_objective(recipe).to(accelerator.device)
    networks = {phase: _network(recipe, phase, resumed is not None, log) for phase in objective.phases}
    ema = Ema(networks[objective.phases[0]], recipe.ema.decay)
    ema.network.to(accelerator.device)
    phases = {name: Engine(accelerator, network, recipe.optimizer_of(name)) for name, network in networks.items()}
    stream = _stream(recipe, accelerator.device)
    run = Run(
        recipe, accelerator, objective, phases, ema, stream, open_validation(recipe), log,
        Trace(folder / "trace", ranks.rank(), recipe.data.trace), Clock(), StopRequest(folder),
        state={"manifest": open_shards(recipe.data.train).manifest.digest, "best": None, "skipped": 0, "validated": True},
    )  # fmt: skip
    if resumed:
        restore(run, resumed)
    _introduce(run)
    return run


def open_accelerator(precision: str) -> Accelerator:
    """Devices and the process group, as the launcher asks for them. All ranks must call."""
    cuda = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "false").lower() not in ("true", "1")
    if precision == "fp16" and not cuda:
        raise UserError("precision: fp16 needs a GPU; bf16 and no run on the CPU")
    # Named, because accelerate guesses wrongly on machines without a GPU; and only for a group, because in one process
    # the name alone makes it look for a group that is not there.
    group = InitProcessGroupKwargs(backend="nccl" if cuda else "gloo", timeout=timedelta(minutes=30))
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return Accelerator(mixed_precision=precision, kwargs_handlers=[group] if several else None)


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
    return weights.build(PACKAGES[kind], {"name": part.name, **part.options}, scale, kind)


def _network(recipe: Recipe, phase: str, resuming: bool, log: Log) -> nn.Module:
    """A network with its starting weights; frozen parts no longer require gradients."""
    part = getattr(recipe, phase)
    network = build_network(part, phase, recipe.scale)
    start = getattr(recipe.init, phase, None)
    if start and not resuming:
        section = {"name": part.name, **part.options}
        log.say(weights.start(network, section, start, phase, f"init.{phase}", recipe.init.partial))
    if phase == "generator" and recipe.init.freeze:
        _freeze(network, recipe.init.freeze)
    return network


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


def _stream(recipe: Recipe, device: torch.device) -> Stream:
    return Stream(
        open_shards(recipe.data.train, "data.train"), recipe.data, seed=recipe.seed, scale=recipe.scale,
        accumulate=recipe.accumulate, steps=recipe.steps, channels=int(recipe.generator.options.get("channels", 3)),
        degrade=build_degradation(recipe), device=device,
    )  # fmt: skip


def open_validation(recipe: Recipe) -> Batches | None:
    if recipe.data.validation is None:
        return None
    images = open_images(recipe.data.validation, recipe.data.validation_limit)
    return Batches(images, recipe.scale, build_degradation(recipe), VALIDATION_BATCH)


def _introduce(run: Run) -> None:
    """The first lines of the log: what trains, on what, from where."""
    recipe = run.recipe
    for name, engine in run.phases.items():
        parameters = list(engine.bare.parameters())
        total, trained = sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)
        note = "" if total == trained else f", {trained:,} of them trained"
        run.log.say(f"{name}: {getattr(recipe, name).name}, {total:,} parameters{note}")
    shards = run.stream.source.reader.shards
    run.log.say(
        f"data: {run.stream.samples:,} samples in {len(shards.manifest.shards)} shards; {recipe.steps:,} steps of "
        f"{recipe.data.batch} are {recipe.steps * recipe.data.batch / run.stream.samples:.1f} epochs"
    )
    run.log.say(
        f"on {ranks.size()} {'rank' if ranks.size() == 1 else 'ranks'} ({run.device.type}), precision {recipe.precision}, "
        f"{run.stream.accumulate} micro-batch(es) per step"
    )
    if run.step:
        run.log.say(f"continuing after step {run.step}")
    run.log.say(f"environment: {json.dumps(run_folder.environment(ranks.size())['packages'])}")
