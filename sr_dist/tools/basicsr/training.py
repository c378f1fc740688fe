"""`train`, `val` and `logger` -> steps, optimizers, schedule, EMA, validation and log."""

from __future__ import annotations

from sr_dist.core.config import Tree
from sr_dist.tools.basicsr.options import Options, numbers, shown, whole, whole_numbers, yes

OPTIMIZERS = {"Adam": "adam", "AdamW": "adamw", "SGD": "sgd"}


def optimizers(options: Options, gan: bool) -> Tree:
    sections: Tree = {"optimizer": _optimizer(options, "optim_g", "optimizer")}
    if gan and options.has("train.optim_d"):
        other = _optimizer(options, "optim_d", "discriminator_optimizer")
        if other != sections["optimizer"]:
            sections["discriminator_optimizer"] = other
    return sections


def _optimizer(options: Options, theirs: str, ours: str) -> Tree:
    path = f"train.{theirs}"
    kind = options.read(f"{path}.type", str, "Adam")
    name = OPTIMIZERS.get(kind)
    if name is None:
        name = "adam"
        options.checks.append(f"{path}.type: '{kind}' has no equal; the recipe has adam in its place.")
    options.note(f"{path}.type", f"{ours}.name: {name}")
    section: Tree = {"name": name, "learning_rate": options.take(f"{path}.lr", float, 1e-4, f"{ours}.learning_rate")}
    if name == "sgd":
        section["momentum"] = options.take(f"{path}.momentum", float, 0.0, f"{ours}.momentum")
    else:
        section["betas"] = options.take(f"{path}.betas", numbers, [0.9, 0.999], f"{ours}.betas")
    section["weight_decay"] = options.take(
        f"{path}.weight_decay", float, 0.01 if name == "adamw" else 0.0, f"{ours}.weight_decay"
    )
    return section


def schedule(options: Options, rate: float) -> Tree:
    path = "train.scheduler"
    section: Tree
    kind = options.read(f"{path}.type", str, "")
    steps = options.read("train.total_iter", whole, 1)
    if kind in ("MultiStepLR", "MultiStepRestartLR"):
        milestones: list[int] = options.take(f"{path}.milestones", whole_numbers, [], "schedule.milestones")
        gamma = options.take(f"{path}.gamma", float, 0.1, "schedule.factor")
        section = {"name": "milestones", "milestones": milestones, "factor": gamma} if milestones else {"name": "constant"}
        for name in ("restarts", "restart_weights"):
            options.drop(f"{path}.{name}", "milestones have no restarts")
    elif kind == "CosineAnnealingRestartLR":
        section = _cosine(options, rate, steps)
    else:
        section = {"name": "constant"}
        if kind:
            options.checks.append(f"{path}.type: '{kind}' has no equal; the learning rate is constant.")
    options.note(f"{path}.type", f"schedule.name: {section['name']}")
    warmup = options.take("train.warmup_iter", whole, -1, "schedule.warmup (-1: none)")
    return {**section, "warmup": warmup} if warmup > 0 else section


def _cosine(options: Options, rate: float, steps: int) -> Tree:
    path = "train.scheduler"
    periods = options.take(f"{path}.periods", whole_numbers, [steps], "schedule.period")
    weights = options.take(f"{path}.restart_weights", numbers, [1.0], "schedule.restart")
    lowest = options.take(f"{path}.eta_min", float, 0.0, "schedule.lowest, as a share of the generator's learning rate")
    if len(set(periods)) > 1 or set(weights) != {1.0}:
        options.checks.append(
            f"{path}: periods {shown(periods)} with weights {shown(weights)} became equal periods of {periods[0]} steps with "
            f"the weight 1, the only ones that the cosine has."
        )
    section: Tree = {"name": "cosine", "period": periods[0]}
    if steps > periods[0]:
        section["restart"] = True
    return {**section, "lowest": float(f"{lowest / rate:.6g}")} if lowest else section


SAVED = 100  # the size of the usual validation sets, where BasicSR saves all images


def validation(options: Options) -> Tree:
    every = options.take("val.val_freq", whole, 0, "validate_every")
    section: Tree = {"validate_every": every} if every else {}
    metrics = [name for name in ("psnr", "ssim") if _has_metric(options, name)]
    if metrics:
        section["metrics"] = metrics
    scale = options.read("scale", whole, 1)
    for name in options.value("val.metrics") or {}:
        kind = options.read(f"val.metrics.{name}.type", str, "")
        path = f"val.metrics.{name}"
        if kind.removeprefix("calculate_") not in ("psnr", "ssim"):
            options.drop(path, f"after training: evaluate --metrics=pyiqa:{kind.removeprefix('calculate_') or name}")
            continue
        options.note(f"{path}.type", f"metrics: {kind.removeprefix('calculate_')}")
        options.drop(f"{path}.better", "every metric knows which way is better")
        options.note(f"{path}.test_y_channel", "columns of Y and of RGB are both written")
        same = options.read(f"{path}.crop_border", whole, scale) == scale
        (options.note if same else options.drop)(f"{path}.crop_border", "the border of validation is the scale")
    if options.read("val.save_img", yes, False):
        section["sample_images"] = SAVED
        options.note("val.save_img", f"sample_images: {SAVED}, the first images of each set")
    options.note("val.save_img", "sample_images: 0, a sheet of four images without it")
    options.drop("val.pbar", "the progress bar is always there on a terminal")
    return section


def _has_metric(options: Options, name: str) -> bool:
    metrics = options.value("val.metrics") or {}
    return any(str(one.get("type")) == f"calculate_{name}" for one in metrics.values() if isinstance(one, dict))


def log(options: Options) -> Tree:
    section: Tree = {}
    for theirs, ours in (("print_freq", "log_every"), ("save_checkpoint_freq", "save_every")):
        if options.has(f"logger.{theirs}"):
            section[ours] = options.take(f"logger.{theirs}", whole, 1, ours)
    if "save_every" in section:
        options.checks.append("keep: the last 3 checkpoints stay; BasicSR keeps all (keep: {last: 3, every: N} keeps more).")
    log: Tree = {}
    if options.has("logger.wandb.project"):
        log = {"wandb": "online", "project": options.take("logger.wandb.project", str, "", "log.project")}
    if options.take("logger.use_tb_logger", yes, False, "log.trackers"):
        log["trackers"] = ["wandb", "tensorboard"] if log else ["tensorboard"]
    if log:
        section["log"] = log
    options.note("logger.wandb.project", "log.wandb: off")
    options.drop("logger.wandb.resume_id", "the id of the run is kept by itself")
    return section


def steps_and_ema(options: Options) -> Tree:
    steps = options.take("train.total_iter", whole, 0, "steps")
    return {"steps": steps, "ema": {"decay": options.take("train.ema_decay", float, 0.0, "ema.decay")}}


def precision(options: Options) -> Tree:
    """Options of traiNNer-redux."""
    section: Tree = {}
    if options.take("use_amp", yes, False, "precision"):
        section["precision"] = "bf16" if options.take("amp_bf16", yes, False, "precision: bf16") else "fp16"
    options.note("amp_bf16", "precision")
    for theirs, ours in (("use_channels_last", "channels_last"), ("use_compile", "compile")):
        if options.has(theirs):
            section[ours] = options.take(theirs, yes, False, ours)
    return section
