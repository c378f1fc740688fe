"""The sections of a recipe, and the checks that span them. No torch: a mistake is said before anything heavy is loaded.

One recipe is one stage is one run folder. Keys are the words of the log; every default that a recipe does not spell out
stands here and in the `recipe.yaml` of its run.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from sr_dist import config, plugins, pretrained
from sr_dist.config import Absent, Names, Settings, Whole
from sr_dist.data.format import Shards, open_shards
from sr_dist.errors import UserError, nearest

PACKAGES = {
    "generator": "sr_dist.models.generators",
    "discriminator": "sr_dist.models.discriminators",
    "objective": "sr_dist.objectives",
    "degradation": "sr_dist.data.degradations",
    "content": "sr_dist.losses.content",
}


Positive = Annotated[int, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Period = Annotated[Positive | None, Absent]  # every so many steps, or never
Text = Annotated[str | None, Absent]


class Part(Settings):
    """A thing that is one file: its name, and options that the file's own `Config` types."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class Data(Settings):
    train: str  # a folder of shards, or a brace pattern of some
    validation: Text = None  # shards or a folder of images
    validation_limit: Annotated[Positive | None, Absent] = None  # only the first so many images
    select: dict[str, Positive] = {}  # samples of a class, of an attribute, of `each_class`, of the `rest`; by content hash
    crop: Annotated[Positive | None, Absent]  # pixels of HR; none: whole images, one per micro-batch
    small: Literal["refuse", "replicate"] = "refuse"  # images below the crop
    batch: Positive  # images per step, over all ranks
    flip: bool = True
    rotate: bool = True  # by quarter turns
    degradation: Part = Part(name="bicubic")  # how LR is made, where the shards store none
    window: Positive = 8192  # samples that are mixed together
    workers: Annotated[int, Field(ge=0, le=256)] = 2  # processes per rank
    trace: bool = False  # write down the keys of every micro-batch


class Init(Settings):
    generator: Text = None  # a run folder or a weights file, of ours or of others
    discriminator: Text = None
    classifier: Text = None
    partial: bool = False  # load the tensors that fit, log how many did, and leave the others as they are initialised
    freeze: Names = ()  # patterns of parameter names of the generator, such as body.*


class Optimizer(Settings):
    name: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    momentum: float = 0.0  # sgd's
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip: Annotated[Annotated[float, Field(gt=0)] | None, Absent] = None  # largest gradient norm


class Schedule(Settings):
    """The learning rate as a function of the step: warm-up, then constant, halved at milestones, or a cosine."""

    name: Literal["constant", "milestones", "cosine"] = "constant"
    warmup: Annotated[int, Field(ge=0)] = 0
    milestones: tuple[int, ...] = ()
    factor: float = 0.5
    period: Period = None  # of the cosine, in steps

    @model_validator(mode="after")
    def _complete(self) -> Schedule:
        if self.name == "cosine" and not self.period:
            raise ValueError("a cosine needs schedule.period (steps)")
        if self.name == "milestones" and not self.milestones:
            raise ValueError("needs schedule.milestones, such as [50000, 100000]")
        return self


class Ema(Settings):
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.999


class Keep(Settings):
    """Which checkpoints stay: the last ones, the best by a validation metric, and every so many steps."""

    last: Positive = 3
    best: Text = None
    every: Period = None


class Zero(Settings):
    """For DeepSpeed configurations; without one it says nothing."""

    discriminator: Annotated[Literal[1, 2, 3] | None, Absent, Whole] = None  # the critic's own stage, if not the configuration's
    persistence_threshold: Annotated[int, Field(ge=0)] = 0  # parameters up to this size stay whole under stage 3


class Log(Settings):
    wandb: Literal["off", "offline", "online"] = "off"
    project: str = "sr_dist"
    artifacts: bool = False  # every checkpoint to W&B too


class Resume(Settings):
    allow: Names = ()  # keys that may differ from those the run began with


def _keep(value: Any) -> Any:
    return {"last": value} if isinstance(value, str | int) else value


class Recipe(Settings):
    name: str
    seed: int = 0
    scale: Annotated[Literal[1, 2, 3, 4, 8], Whole]
    steps: Positive
    runs: str = "runs"
    data: Data
    generator: Part
    discriminator: Annotated[Part | None, Absent] = None
    objective: Part
    init: Init = Init()
    optimizer: Optimizer
    discriminator_optimizer: Annotated[Optimizer | None, Absent] = None  # the generator's, where it is not given
    schedule: Schedule = Schedule()
    ema: Ema = Ema()
    accumulate: Positive = 1  # micro-batches per step and rank
    precision: Literal["no", "bf16", "fp16"] = "no"
    max_skipped: Positive = 20  # steps in a row with non-finite gradients, before the run stops
    compile: bool = False  # torch.compile of both networks
    channels_last: bool = False  # memory layout that tensor cores like
    checkpointing: Names = ()  # patterns of the generator's modules whose activations are made again in the backward pass
    tf32: bool = True  # on GPUs that have it; fp32 products with 10 bits of mantissa
    save_every: Period = 1000
    on_save_error: Literal["stop", "continue"] = "stop"  # when a checkpoint cannot be written
    hang_timeout: Annotated[Annotated[float, Field(gt=0)] | None, Absent] = 1800.0  # seconds without progress that end the job
    keep: Annotated[Keep, BeforeValidator(_keep)] = Keep()
    validate_every: Period = 1000
    log_every: Positive = 50
    log: Log = Log()
    zero: Zero = Zero()
    resume: Resume = Resume()
    allow_download: bool = False  # of published weights that a loss needs

    @field_validator("name")
    @classmethod
    def _folder_name(cls, value: str) -> str:
        if not value or value.startswith(".") or "/" in value or value != value.strip():
            raise ValueError(f"'{value}' cannot be the name of a run folder")
        return value

    @property
    def folder(self) -> Path:
        return Path(self.runs) / self.name

    def optimizer_of(self, phase: str) -> Optimizer:
        return self.discriminator_optimizer or self.optimizer if phase == "discriminator" else self.optimizer

    def parts(self) -> dict[str, Part]:
        """Every part by its key; content terms are parts of the objective."""
        found = {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "objective": self.objective,
            "data.degradation": self.data.degradation,
        }
        return {key: part for key, part in found.items() if part is not None}


def load(path: str | Path, options: Mapping[str, str]) -> Recipe:
    """A recipe file and `--key.sub=value` -> settings whose sections, names and data fit together."""
    recipe = _stated(path, options)
    recipe = _with_classes(recipe, open_shards(recipe.data.train, "data.train"))
    check_data(recipe)
    check_world(recipe, int(os.environ.get("WORLD_SIZE", "1")))
    return recipe


def load_without_data(path: str | Path, options: Mapping[str, str]) -> Recipe:
    """The same where the shards may be on another machine: enough to build the networks. Only `classes: manifest` needs them."""
    recipe = _stated(path, options)
    if not recipe.discriminator or str(recipe.discriminator.options.get("classes")) != "manifest":
        return recipe
    try:
        return _with_classes(recipe, open_shards(recipe.data.train, "data.train"))
    except UserError as problem:
        raise UserError(
            f"discriminator.classes: manifest, but {problem}; --discriminator.classes=N does without shards"
        ) from None


def _stated(path: str | Path, options: Mapping[str, str]) -> Recipe:
    recipe = config.typed(Recipe, config.override(config.read(path), options))
    check_names(recipe)
    check_agreement(recipe)
    return recipe


def check_names(recipe: Recipe) -> None:
    for key, part in recipe.parts().items():
        plugins.check(PACKAGES[key.split(".")[-1]], part.name, part.options, key)
    for name, section in content_parts(recipe.objective.options.get("content", {"l1": "1"})).items():
        plugins.check(PACKAGES["content"], name, section[1], f"objective.content.{name}")


def check_agreement(recipe: Recipe) -> None:
    """Sections that must say the same."""
    if recipe.discriminator:
        ours, theirs = (str(part.options.get("channels", 3)) for part in (recipe.generator, recipe.discriminator))
        if ours != theirs:
            raise UserError(f"discriminator.channels: {theirs}, but the generator makes images of {ours}")
    if recipe.keep.best:
        known = [f"{name}{kind}" for name in plugins.names("sr_dist.eval.metrics") for kind in ("_y", "_rgb")]
        if recipe.keep.best not in known:
            raise UserError(f"keep.best: no metric '{recipe.keep.best}'{nearest(recipe.keep.best, known)}")


def content_parts(content: Any) -> dict[str, tuple[float, dict[str, Any]]]:
    """`{l1: 0.01, vgg: {weight: 1, layers: ...}}` -> {name: (weight, options)}."""
    if not isinstance(content, Mapping):
        raise UserError(f"objective.content: wants terms with weights, such as {{l1: 1.0}}; got {content!r}")
    found = {}
    for name, section in content.items():
        options = dict(section) if isinstance(section, Mapping) else {"weight": section}
        weight = options.pop("weight", "1")
        try:
            found[name] = (float(weight), options)
        except (TypeError, ValueError):
            raise UserError(f"objective.content.{name}: {weight!r} is not a weight (a number)") from None
        if not math.isfinite(found[name][0]) or found[name][0] < 0:
            raise UserError(f"objective.content.{name}: the weight {weight} is not a number from 0 up")
    if not found:
        raise UserError("objective.content: names no term; there are l1, mse, vgg and what else losses/content holds")
    return found


def _with_classes(recipe: Recipe, shards: Shards) -> Recipe:
    """`discriminator.classes: manifest` becomes the count of the shards; a stated count must agree with it."""
    stated = str(recipe.discriminator.options.get("classes", "none")) if recipe.discriminator else "none"
    there = len(shards.manifest.classes)
    if stated in ("none", "null"):
        return recipe
    if not there:
        raise UserError(f"discriminator.classes: '{stated}', but the shards in '{shards.folder}' have no classes; say none")
    if stated not in ("manifest", str(there)):
        raise UserError(
            f"discriminator.classes: {stated}, but the manifest of '{shards.folder}' has {there}; say manifest or {there}"
        )
    assert recipe.discriminator
    part = recipe.discriminator.model_copy()
    part = Part(name=part.name, **{**part.options, "classes": there})
    return recipe.model_copy(update={"discriminator": part})


def check_data(recipe: Recipe) -> None:
    data, scale = recipe.data, recipe.scale
    shards = open_shards(data.train, "data.train")
    shards.check_sizes()
    if os.environ.get("LOCAL_RANK", "0") == "0":  # once per node is enough
        shards.check_indexes()
    if data.crop and data.crop % scale:
        low = data.crop // scale * scale
        around = f"{low} and {low + scale}" if low else f"{scale}"
        raise UserError(f"data.crop: {data.crop} is not a multiple of scale {scale}; nearest are {around}")
    if data.crop and data.crop > shards.manifest.min_side and data.small == "refuse":
        fits = shards.manifest.min_side // scale * scale
        raise UserError(
            f"data.crop: {data.crop} is more than the smallest side of '{data.train}', {shards.manifest.min_side}; "
            f"{fits} fits, or data.small=replicate repeats the edges of small images"
        )
    if shards.manifest.scale and shards.manifest.scale != scale:
        raise UserError(f"scale: {scale}, but the LR images stored in '{data.train}' are {shards.manifest.scale} times smaller")
    if data.validation and not Path(data.validation).is_dir() and "{" not in data.validation:
        open_shards(data.validation, "data.validation")  # says which folder is missing, and the nearest name


def check_world(recipe: Recipe, ranks: int) -> None:
    parts = ranks * recipe.accumulate
    if recipe.data.batch < parts:
        raise UserError(f"data.batch: {recipe.data.batch} is less than ranks x accumulate = {ranks} x {recipe.accumulate}")
    if recipe.data.crop is None and recipe.data.batch % ranks:
        raise UserError(f"data.batch: {recipe.data.batch} whole images (data.crop: none) do not divide by {ranks} ranks")


def complete(recipe: Recipe) -> Recipe:
    """Imports the parts (and with them torch) and writes out their options, so that the run folder tells everything."""
    update: dict[str, Any] = {}
    for key, part in recipe.parts().items():
        module, options = plugins.resolve(PACKAGES[key.split(".")[-1]], part.name, part.options, key)
        whole = Part(name=part.name, **options.model_dump(mode="json"))
        if key == "objective":
            whole = _with_typed_content(whole)
        if key == "data.degradation":
            update["data"] = recipe.data.model_copy(update={"degradation": whole})
        else:
            update[key] = whole
        if key == "objective":
            _check_phases(recipe, module.Objective.phases)
        if hasattr(module, "check"):  # what the part asks of the rest of the recipe
            module.check(options, recipe)
    for module, term, _ in content_terms(recipe):
        if hasattr(module, "check"):
            module.check(term, recipe)
    return recipe.model_copy(update=update)


def _with_typed_content(part: Part) -> Part:
    """The objective with every option of its content terms written out."""
    if "content" not in part.options:
        return part
    content = {}
    for name, (weight, options) in content_parts(part.options["content"]).items():
        _, term = plugins.resolve(PACKAGES["content"], name, options, f"objective.content.{name}")
        content[name] = {"weight": weight, **term.model_dump(mode="json")}
    return Part(name=part.name, **{**part.options, "content": content})


def find_weights(recipe: Recipe) -> None:
    """Published files that the content terms need are here, or fetched where that is allowed."""
    for module, term, key in content_terms(recipe):
        for file in module.files(term) if hasattr(module, "files") else ():
            pretrained.find(file, key, download=recipe.allow_download)


def content_terms(recipe: Recipe) -> Iterator[tuple[ModuleType, Any, str]]:
    """(module, typed options, key) of every content term."""
    for name, (_, options) in content_parts(recipe.objective.options.get("content", {"l1": "1"})).items():
        key = f"objective.content.{name}"
        yield *plugins.resolve(PACKAGES["content"], name, options, key), key


def check_backend(recipe: Recipe, *, zero_stage: int, cuda: bool, ranks: int) -> None:
    """Refuses parts that cannot run under what the launcher asks for; each part states it in its `refuses`."""
    for key, part in recipe.parts().items():
        module, options = plugins.resolve(PACKAGES[key.split(".")[-1]], part.name, part.options, key)
        stage = (recipe.zero.discriminator or zero_stage) if key == "discriminator" and zero_stage else zero_stage
        reason = module.refuses(options, zero_stage=stage, cuda=cuda, ranks=ranks) if hasattr(module, "refuses") else None
        if reason:
            raise UserError(f"{key}: '{part.name}': {reason}")


def refuse_classes(recipe: Recipe) -> None:
    """For objectives that do not train a critic's class head: idle parameters stop DDP."""
    if recipe.discriminator and str(recipe.discriminator.options.get("classes", "none")) not in ("none", "null", "None"):
        raise UserError(
            f"discriminator.classes: the objective '{recipe.objective.name}' trains no class head; say none, or use srugan"
        )


def _check_phases(recipe: Recipe, phases: tuple[str, ...]) -> None:
    for key in ("generator", "discriminator", "classifier"):
        if getattr(recipe.init, key) and key not in phases:
            raise UserError(f"init.{key}: the objective '{recipe.objective.name}' trains no {key}")
    wants = "discriminator" in phases
    if wants and recipe.discriminator is None:
        raise UserError(f"discriminator: the objective '{recipe.objective.name}' trains one; name it, such as {{name: acgan}}")
    if not wants and recipe.discriminator is not None:
        raise UserError(f"discriminator: the objective '{recipe.objective.name}' trains none; leave the section out")


# May differ between a run and its resumption; a section stands for all its keys. Starting weights are of no more use then.
FREE = (
    "steps", "runs", "accumulate", "precision", "compile", "channels_last", "checkpointing", "tf32", "data.workers", "data.trace",
    "data.train", "data.validation", "data.validation_limit", "save_every", "keep", "validate_every", "log_every", "log", "zero",
    "init.generator", "init.discriminator", "init.classifier", "allow_download", "max_skipped", "on_save_error", "hang_timeout",
    "resume",
)  # fmt: skip
WARNED = ("precision", "compile", "channels_last", "checkpointing", "tf32", "accumulate")  # the numbers change a little


def check_allowed(recipe: Recipe) -> None:
    """`resume.allow` names keys that exist."""
    known = config.flat(recipe.model_dump(mode="json"))
    known |= {key.rsplit(".", i)[0]: None for key in known for i in range(1, key.count(".") + 1)}
    for key in recipe.resume.allow:
        if key not in known:
            raise UserError(f"resume.allow: no key '{key}'{nearest(key, known)}")


def changed(before: Mapping[str, Any], after: Recipe) -> list[str]:
    """The keys that differ from those a run began with and may not, as `key: was X, is Y`."""
    allowed = (*FREE, *after.resume.allow)

    def may(key: str) -> bool:
        return any(key == name or key.startswith(f"{name}.") for name in allowed)

    return [line for key, line in differences(before, after) if not may(key)]


def differences(before: Mapping[str, Any], after: Recipe) -> list[tuple[str, str]]:
    """Every key whose value differs; keys that the older file did not know yet had their defaults."""
    old = config.flat(config.parse(config.text(config.typed(Recipe, before))))
    new = config.flat(config.parse(config.text(after)))
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    return [(key, f"{key}: was {old.get(key)}, is {new.get(key)}") for key in keys]
