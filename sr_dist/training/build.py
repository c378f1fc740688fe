"""From a recipe to everything that `loop.fit` uses: devices, engines, data, log, and the checkpoint to resume from."""

from __future__ import annotations

import hashlib
import json

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from sr_dist.core import config, launch_env, plugins, ranks
from sr_dist.core.errors import UserError
from sr_dist.core.lost_writes import LostWrites
from sr_dist.core.printable import plural
from sr_dist.core.run_layout import RECIPE, TRACE, rollbacks_of
from sr_dist.data.format import Shards
from sr_dist.data.image_pairs import Batches
from sr_dist.data.images import open_images
from sr_dist.data.loader import Loader, LoaderConfig, Start
from sr_dist.data.open_data import cache_for, open_training_sets
from sr_dist.data.select import portion_of
from sr_dist.data.startup_report import startup_lines, validation_lines
from sr_dist.data.tar_loader import TarLoader
from sr_dist.evaluation.distances.extractor import open_extractor
from sr_dist.evaluation.metric_set import Metrics, open_metrics
from sr_dist.models.trained import match_tensors
from sr_dist.recipe import checks, resume_rules
from sr_dist.recipe.notes import notes as recipe_notes
from sr_dist.recipe.sections import Data, Recipe, whole_weights
from sr_dist.training import checkpoint, rollback, run_folder
from sr_dist.training.alarms import no_alarms
from sr_dist.training.checkpoint import Checkpoint
from sr_dist.training.classification import VALIDATION_BATCH
from sr_dist.training.ddp import DDPEngine
from sr_dist.training.deepspeed import DeepSpeedEngine
from sr_dist.training.ema import Ema
from sr_dist.training.engine import Engine
from sr_dist.training.log import Log, Trace
from sr_dist.training.networks import build_degradation, build_objective, in_precision, phase_network, prepared
from sr_dist.training.power_ema import PowerEmas, check_averages, keep_snapshot
from sr_dist.training.run import Rollback, Run, State, resume
from sr_dist.training.stop_request import StopRequest
from sr_dist.training.throughput import Clock
from sr_dist.training.watchdog import Watchdog


def set_up(recipe: Recipe) -> Run:
    """Mistakes are refused before the run folder changes. All ranks must call."""
    launch_env.record_collectives(recipe.folder)
    accelerator = ranks.open_accelerator(recipe.precision)
    device = accelerator.device
    torch.set_float32_matmul_precision("high" if recipe.tf32 else "highest")
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = recipe.tf32, recipe.cudnn_benchmark
    saved = newest_checkpoint(recipe)
    shards = open_training_sets(recipe.data)
    digest = data_digest(recipe.data, shards)
    check_same_data(recipe, shards, digest, saved)
    torch.manual_seed(recipe.seed)  # every rank builds the same networks
    objective = in_precision(build_objective(recipe).to(device), recipe.precision)
    torch.manual_seed(recipe.seed)  # and the same ones whether or not a content term builds networks
    notes: list[str] = []
    networks = {phase: phase_network(recipe, phase, saved is not None, notes) for phase in objective.phases}
    if saved:
        check_fits(networks, saved)
        if recipe.ema.post_hoc:
            check_averages(saved.folder)
    lost = LostWrites(tolerate=recipe.on_save_error == "continue")
    loader = open_loader(recipe, shards, device, Start(saved.state["position"], saved.step) if saved else None, lost)
    validation = open_validation(recipe)
    metrics = validation_metrics(recipe, validation, device)
    ema = Ema(networks[objective.phases[0]], recipe.ema.decay)
    ema.network.to(device)  # stays bare: only the trained networks are prepared
    engines = build_engines(accelerator, recipe, networks)
    ema.follow(engines[objective.phases[0]])
    stop = StopRequest(recipe.folder)  # before the folder changes: what ends the run from here on leaves a marker
    run_id, rollbacks = claim_folder(recipe, saved)  # after everything that can be refused
    log = Log(recipe, ranks.is_first(), lost)
    folder = recipe.folder
    run = Run(
        recipe, accelerator, objective, engines, ema, loader, validation, metrics, log,
        Trace(folder / TRACE, ranks.rank(), recipe.data.trace, lost), Clock(device), stop,
        checkpoint.Writer(log.info), Watchdog(folder, ranks.rank(), recipe.hang_timeout),
        lost, begin_state(recipe, run_id, digest, rollbacks),
        average=ema.network if checks.reads_average(recipe) else None,
        power_emas=PowerEmas(engines[objective.phases[0]]) if recipe.ema.post_hoc else None,
    )  # fmt: skip
    if saved:
        resume(run, saved)
    for note in (*plugins.foreign_code(), *notes, *recipe_notes(recipe)):
        log.info(note)
    log_start(run)
    return run


def check_fits(networks: dict[str, nn.Module], saved: Checkpoint) -> None:
    """Refuses networks that resume.allow has changed so far that the checkpoint is not theirs."""
    checkpoint.check_state(saved, networks)
    for phase, network in networks.items():
        match = match_tensors(network.state_dict(), saved.shapes(phase))
        if not match.complete:
            raise UserError(f"resume.allow: the {phase} in checkpoint {saved.folder.name} does not fit: {match}")


def build_engines(accelerator: Accelerator, recipe: Recipe, networks: dict[str, nn.Module]) -> dict[str, Engine]:
    """The backend that the launcher chose, for every network. All ranks must call."""
    deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    engines: dict[str, Engine] = {}
    trained = {phase: prepared(network, recipe, phase, accelerator.device) for phase, network in networks.items()}
    for phase, network in trained.items():
        engines[phase] = (DeepSpeedEngine if deepspeed else DDPEngine)(accelerator, network, recipe, phase)
    return engines


def data_digest(data: Data, shards: list[Shards]) -> str:
    """Identifies the samples and their order: the digest of one data set, or of several with their weights."""
    if len(shards) == 1:
        return shards[0].manifest.digest
    mixed = list(zip((data_set.manifest.digest for data_set in shards), whole_weights(data.weights), strict=True))
    return hashlib.sha256(json.dumps(mixed).encode()).hexdigest()


def check_same_data(recipe: Recipe, shards: list[Shards], digest: str, saved: Checkpoint | None) -> None:
    """Refuses other data than the run began with. All ranks must call."""
    if len(set(ranks.all_gather(digest))) > 1:
        raise UserError("data.train: ranks see different shards; were they changed just now?")
    if saved and saved.state["manifest"] != digest and "data.train" not in recipe.resume.allow:
        raise UserError(
            f"data.train: {first_difference(recipe, shards, saved.state['manifest'])}; "
            f"--resume.allow=data.train says that this is meant"
        )


def first_difference(recipe: Recipe, shards: list[Shards], first_digest: str) -> str:
    """How data.train differs from the data that the run began with."""
    if not (recipe.folder / RECIPE).is_file():
        return f"{recipe.data.train} holds other shards than those that the run was trained on"
    before, now = config.typed(Recipe, config.read(recipe.folder / RECIPE)).data, config.typed(Recipe, config.plain(recipe)).data
    by_source = dict(zip(now.sources, shards, strict=True))
    if set(before.sources) != set(now.sources):
        return f"{now.train} holds other shards than {before.train}, which the run was trained on"
    if data_digest(before, [by_source[source] for source in before.sources]) == first_digest:
        return f"the weights or the order of the data sets were {before.train} when the run began and are {now.train}"
    return f"the shards in {now.train} are not those that the run was trained on; they were built again or changed"


def claim_folder(recipe: Recipe, saved: Checkpoint | None) -> tuple[str, list[Rollback]]:
    """From here on the run folder belongs to this run: its recipe is written, the records of steps after the checkpoint are
    removed. Returns the id of the run and its rollbacks. All ranks must call."""

    def begin() -> tuple[str, list[Rollback]]:
        with run_folder.writing(recipe.folder):
            run_id = run_folder.open_folder(recipe.folder, recipe, ranks.size(), saved)
            run_folder.drop_later(recipe.folder, saved)
            if saved:
                keep_snapshot(recipe, saved.step)  # the process before may have been killed between the two
            return run_id, rollbacks_of(recipe.folder)

    return ranks.from_first(begin)


def newest_checkpoint(recipe: Recipe) -> Checkpoint | None:
    """The first rank looks for it and tells the others. All ranks must call."""

    def find() -> Checkpoint | None:
        rollback.finish(recipe.folder)
        saved = checkpoint.newest(recipe.folder, lambda text: print(text, flush=True))
        if saved:
            checkpoint.check_state(saved)
        return saved

    return ranks.from_first(find)


def begin_state(recipe: Recipe, run_id: str, digest: str, rollbacks: list[Rollback]) -> State:
    fixed = resume_rules.part_of(config.parse(config.text(recipe)), free=False)
    return State(
        run=run_id, recipe=fixed, manifest=digest, best=None, validated=True, last_finite=None, alarms=no_alarms(),
        rollbacks=rollbacks, last_saved=None, logit_gradient=None, last_healthy=None,
    )  # fmt: skip


def open_loader(
    recipe: Recipe, shards: list[Shards], device: torch.device, start: Start | None = None, lost: LostWrites | None = None
) -> Loader:
    config = LoaderConfig(
        recipe.data,
        seed=recipe.seed,
        scale=recipe.scale,
        accumulate=recipe.accumulate,
        steps=recipe.steps,
        channels=recipe.channels,
        channels_last=recipe.channels_last,
    )
    kind = TarLoader if recipe.data.reader == "webdataset" else Loader
    return kind(shards, config, build_degradation(recipe), device, start, recipe.folder, lost)


def open_validation(recipe: Recipe) -> dict[str, Batches]:
    """The validation sets by name; a single one has none."""
    data, cache = recipe.data, cache_for(recipe.data)
    if data.split:
        portion = portion_of(data, 1)
        sets = {"": open_images(data.sources[0], data.validation_limit, "data.train", cache=cache, portion=portion)}
    else:
        sets = {
            name: open_images(source, data.validation_limit, data.validation_key(name), cache=cache)
            for name, source in data.validation_sets.items()
        }
    return {name: Batches(images, recipe.scale, build_degradation(recipe), VALIDATION_BATCH) for name, images in sets.items()}


def validation_metrics(recipe: Recipe, validation: dict[str, Batches], device: torch.device) -> Metrics:
    """All ranks must call."""
    if not validation:
        return open_metrics((), device, download=recipe.allow_download)
    extractor = open_extractor(recipe.extractor, device)
    return open_metrics(recipe.metrics, device, extractor=extractor, download=recipe.allow_download)


def log_start(run: Run) -> None:
    """The first lines of the log: networks, data, launch, versions."""
    recipe = run.recipe
    for name, engine in run.engines.items():
        parameters = list(engine.bare.parameters())
        total, trainable = (sum(map(engine.size_of, some)) for some in (parameters, [p for p in parameters if p.requires_grad]))
        note = "" if total == trainable else f", {trainable:,} of them trained"
        run.log.info(f"{name}: {getattr(recipe, name).name}, {total:,} parameters{note}")
    if run.metrics.extractor:
        run.log.info(f"validation's extractor: {run.metrics.extractor.name}, sha256 {run.metrics.extractor.weights_sha256}")
    counts = {name: len(batches.images.names) for name, batches in run.validation.items()}
    for line in (*startup_lines(run.loader), *validation_lines(recipe.data, counts)):
        run.log.info(line)
    deepspeed = isinstance(run.engines[run.primary], DeepSpeedEngine)
    backend = f"ZeRO-{launch_env.zero_stage()}, " if deepspeed else "DDP, " if ranks.size() > 1 else ""
    run.log.info(
        f"on {plural(ranks.size(), 'rank')} ({run.device.type}), {backend}precision {recipe.precision}, "
        f"{plural(run.loader.accumulate, 'micro-batch', 'micro-batches')} per step"
    )
    if run.step:
        run.log.info(f"continuing after step {run.step}")
    run.log.info(f"environment: {json.dumps(run_folder.environment(ranks.size())['packages'])}")
