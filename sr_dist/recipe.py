"""The sections of a recipe, and the checks that span them. No torch: a mistake is said before anything heavy is loaded.

One recipe is one stage is one run folder. Keys are the words of the log; every default that a recipe does not spell out
stands here and in the `recipe.yaml` of its run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
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

BASELINES = ("nearest", "bilinear", "bicubic")

Positive = Annotated[int, Field(gt=0)]
Period = Annotated[Positive | None, Absent]  # every so many steps, or never
Path_ = Annotated[str | None, Absent]


class Part(Settings):
    """A thing that is one file: its name, and options that the file's own `Config` types."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class Data(Settings):
    train: str  # a folder of shards, or a brace pattern of some
    validation: Path_ = None  # shards or a folder of images
    validation_limit: Annotated[Positive | None, Absent] = None  # only the first so many images
    select: dict[str, Positive] = {}  # samples of a class, of an attribute, of `each_class`, of the `rest`; by content hash
    crop: Annotated[Positive | None, Absent]  # pixels of HR; none: whole images, one per micro-batch
    small: Literal["refuse", "replicate"] = "refuse"  # images below the crop
    batch: Positive  # images per step, over all ranks
    flip: bool = True
    rotate: bool = True  # by quarter turns
    degradation: Part = Part(name="bicubic")  # how LR is made, where the shards store none
    window: Positive = 8192  # samples that are mixed together
    workers: Annotated[int, Field(ge=0)] = 2  # processes per rank
    trace: bool = False  # write down the keys of every micro-batch


class Init(Settings):
    generator: Path_ = None  # a run folder or a weights file, of ours or of others
    discriminator: Path_ = None
    partial: bool = False  # load the tensors that fit, log how many did, and leave the others as they are initialised
    freeze: Names = ()  # patterns of parameter names of the generator, such as body.*


class Optimizer(Settings):
    name: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
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
    best: Path_ = None
    every: Period = None


class Log(Settings):
    wandb: Literal["off", "offline", "online"] = "off"
    project: str = "sr_dist"


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
    save_every: Period = 1000
    keep: Annotated[Keep, BeforeValidator(_keep)] = Keep()
    validate_every: Period = 1000
    log_every: Positive = 50
    log: Log = Log()
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
    recipe = config.typed(Recipe, config.override(config.read(path), options))
    check_names(recipe)
    recipe = _with_classes(recipe, open_shards(recipe.data.train, "data.train"))
    check_data(recipe)
    check_world(recipe, int(os.environ.get("WORLD_SIZE", "1")))
    return recipe


def check_names(recipe: Recipe) -> None:
    for key, part in recipe.parts().items():
        plugins.check(PACKAGES[key.split(".")[-1]], part.name, part.options, key)
    for name, section in content_parts(recipe.objective.options.get("content", {})).items():
        plugins.check(PACKAGES["content"], name, section[1], f"objective.content.{name}")


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
        if key == "data.degradation":
            update["data"] = recipe.data.model_copy(update={"degradation": whole})
        else:
            update[key] = whole
        if key == "objective":
            _check_phases(recipe, module.Objective.phases)
        if hasattr(module, "check"):  # what the part asks of the rest of the recipe
            module.check(options, recipe)
    for name, (_, options) in content_parts(recipe.objective.options.get("content", {})).items():
        module, term = plugins.resolve(PACKAGES["content"], name, options, f"objective.content.{name}")
        if hasattr(module, "check"):
            module.check(term, recipe)
        for file in module.files(term) if hasattr(module, "files") else ():
            pretrained.find(file, f"objective.content.{name}", download=recipe.allow_download)
    return recipe.model_copy(update=update)


def refuse_classes(recipe: Recipe) -> None:
    """For objectives that do not train a critic's class head: idle parameters stop DDP."""
    if recipe.discriminator and str(recipe.discriminator.options.get("classes", "none")) not in ("none", "null", "None"):
        raise UserError(
            f"discriminator.classes: the objective '{recipe.objective.name}' trains no class head; say none, or use srugan"
        )


def _check_phases(recipe: Recipe, phases: tuple[str, ...]) -> None:
    wants = "discriminator" in phases
    if wants and recipe.discriminator is None:
        raise UserError(f"discriminator: the objective '{recipe.objective.name}' trains one; name it, such as {{name: acgan}}")
    if not wants and recipe.discriminator is not None:
        raise UserError(f"discriminator: the objective '{recipe.objective.name}' trains none; leave the section out")


# May differ between a run and its resumption. `resume.*` never belongs to the run itself.
FREE = [
    "steps",
    "runs",
    "accumulate",
    "precision",
    "data.workers",
    "data.trace",
    "data.train",
    "data.validation",
    "data.validation_limit",
    "save_every",
    "keep",
    "validate_every",
    "log_every",
    "log",
    "resume",
    "allow_download",
    "max_skipped",
]


def changed(before: Mapping[str, Any], after: Recipe) -> list[str]:
    """The keys that differ from those a run began with and may not, as `key: was X, is Y`."""
    old, new = config.flat(before), config.flat(config.parse(config.text(after)))
    allowed = (*FREE, *after.resume.allow)
    return [
        f"{key}: was {old.get(key)}, is {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
        and not any(key == name or key.startswith(f"{name.removesuffix('.')}.") for name in allowed)
    ]


class Evaluation(Settings):
    """What `sr_dist.evaluate` is asked for."""

    methods: Names
    data: str
    scale: Annotated[Positive | None, Absent] = None
    protocol: str = "matlab-y"
    degradation: str = "bicubic"
    limit: Annotated[Positive | None, Absent] = None
    out: str | None = None
    batch: Positive = 8
    workers: Annotated[int, Field(ge=0)] = 0

    def check(self) -> None:
        """What can be said before torch is loaded."""
        if not self.methods:
            raise UserError("METHOD: name a run folder, a weights file, or bicubic")
        if len(set(self.methods)) < len(self.methods):
            raise UserError(f"METHOD: '{','.join(self.methods)}' names a method twice")
        for name in self.methods:
            if name not in BASELINES and not Path(name).exists():
                near = [str(p) for p in Path(name).parent.glob("*")] if Path(name).parent.is_dir() else []
                raise UserError(f"METHOD: no run folder or weights file '{name}'{nearest(name, [*BASELINES, *near])}")
        if not Path(self.data).exists() and "{" not in self.data:
            open_shards(self.data, "data")  # says what is missing, and the nearest name
        plugins.check(PACKAGES["degradation"], self.degradation, {}, "degradation")
