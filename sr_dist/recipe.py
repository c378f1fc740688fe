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
from sr_dist.data.cache import Cache, cache_of
from sr_dist.data.format import Shards
from sr_dist.data.order import LONGEST_PATTERN, whole_weights
from sr_dist.data.remote import DEFAULT_GB, is_remote, open_shards
from sr_dist.data.select import Portion, portion_rows, shares
from sr_dist.errors import UserError, nearest
from sr_dist.labels import SCORES, labels_of

PACKAGES = {
    "generator": "sr_dist.models.generators",
    "discriminator": "sr_dist.models.discriminators",
    "classifier": "sr_dist.models.classifiers",
    "objective": "sr_dist.objectives",
    "degradation": "sr_dist.data.degradations",
    "content": "sr_dist.losses.content",
}
METRICS = "sr_dist.eval.metrics"  # their files have no options


Positive = Annotated[int, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Period = Annotated[Positive | None, Absent]  # every so many steps, or never
Text = Annotated[str | None, Absent]


class Part(Settings):
    """A thing that is one file: its name, and options that the file's own `Config` types."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


def _sources(value: Any) -> Any:
    """A source, or sources with weights."""
    if not isinstance(value, Mapping):
        return value
    weights = {}
    for source, weight in value.items():
        try:
            weights[str(source)] = float(weight)
        except (TypeError, ValueError):
            raise ValueError(f"'{source}': {weight!r} is not a weight (a number)") from None
        if not 0 < weights[str(source)] < math.inf:
            raise ValueError(f"'{source}': the weight {weight} is not a number above 0")
    if not weights:
        raise ValueError("names no shards")
    if (length := sum(whole_weights(list(weights.values())))) > LONGEST_PATTERN:
        raise ValueError(f"weights in the proportion of whole numbers that add up to {length} are too fine; round them")
    return weights


class Augment(Settings):
    """How far training images are changed before LR is made of them; each by random numbers of its own."""

    rotate_degrees: Annotated[float, Field(ge=0, le=180)] = 0.0  # to either side
    contrast: Fraction = 0.0  # 0.2: a factor from 0.8 to 1.2
    brightness: Fraction = 0.0  # 0.2: up to so much darker or lighter
    erase: Fraction = 0.0  # of the images lose a rectangle


class Data(Settings):
    # Shards: a folder, a brace pattern of some, a URL of a folder, `pipe:` and a command; or several with weights.
    train: Annotated[str | dict[str, float], BeforeValidator(_sources)]
    validation: Text = None  # shards or a folder of images
    validation_limit: Annotated[Positive | None, Absent] = None  # only the first so many images
    select: dict[str, Positive] = {}  # samples of a class, of an attribute, of `each_class`, of the `rest`; by content hash
    balance: dict[str, tuple[Positive, Positive]] = {}  # so many samples with an attribute, so many without; by content hash
    split: tuple[Share, ...] = ()  # of data.train into training, validation and test, by content hash
    crop: Annotated[Positive | None, Absent]  # pixels of HR; none: whole images, one per micro-batch
    small: Literal["refuse", "replicate"] = "refuse"  # images below the crop
    on_corrupt: Literal["fail", "substitute"] = "fail"  # or take the next sample for one that cannot be read, and write it down
    cache: Text = None  # this node's folder for fetched shards; by default in the folder for temporary files
    cache_gb: Annotated[float, Field(gt=0)] = DEFAULT_GB  # how much it may hold
    batch: Positive  # images per step, over all ranks
    flip: bool = True
    rotate: bool = True  # by quarter turns
    augment: Augment = Augment()
    degradation: Part = Part(name="bicubic")  # how LR is made, where the shards store none
    window: Positive = 8192  # samples that are mixed together
    workers: Annotated[int, Field(ge=0, le=256)] = 2  # processes per rank
    trace: bool = False  # write down the keys of every micro-batch

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(self.train) if isinstance(self.train, dict) else (self.train,)

    @property
    def weights(self) -> tuple[float, ...]:
        return tuple(self.train.values()) if isinstance(self.train, dict) else (1.0,)

    def cached(self) -> Cache | None:
        """Where fetched shards go, if any are to be fetched."""
        remote = [source for source in (*self.sources, self.validation or "") if is_remote(source)]
        return cache_of(self.cache, self.cache_gb) if remote or self.cache else None

    def opened(self) -> list[Shards]:
        """The data sets to train on."""
        return [open_shards(source, "data.train", self.cached()) for source in self.sources]

    @model_validator(mode="after")
    def _agree(self) -> Data:
        if self.balance and (self.select or len(self.balance) > 1):
            raise ValueError("balance takes one attribute and no select beside it; select alone takes any number of groups")
        if self.split and not (len(self.split) in (2, 3) and math.isclose(sum(self.split), 1, abs_tol=1e-6)):
            raise ValueError(f"split: {list(self.split)} are not two or three shares that make 1, such as [0.7, 0.15, 0.15]")
        if self.split and self.validation:
            raise ValueError("validation: with a split it is the second part of data.train; leave one of them out")
        return self

    def portion(self, part: int) -> Portion:
        """The samples of data.train that are for training (0), validation (1) or the test at the end (2)."""
        select = self.select
        for name, (there, elsewhere) in self.balance.items():
            select = {name: there, "rest": elsewhere}
        return Portion(select, self.split, part if self.split else 0)


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
    generator: Annotated[Part | None, Absent] = None
    discriminator: Annotated[Part | None, Absent] = None
    classifier: Annotated[Part | None, Absent] = None  # in the generator's place
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
    metrics: Names = ("psnr", "ssim")  # of validation: files of eval/metrics
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

    @property
    def channels(self) -> int:
        """Of the images that train: the generator's or the classifier's."""
        part = self.generator or self.classifier
        return int(part.options.get("channels", 3)) if part else 3

    def optimizer_of(self, phase: str) -> Optimizer:
        return self.discriminator_optimizer or self.optimizer if phase == "discriminator" else self.optimizer

    def parts(self) -> dict[str, Part]:
        """Every part by its key; content terms are parts of the objective."""
        found = {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "classifier": self.classifier,
            "objective": self.objective,
            "data.degradation": self.data.degradation,
        }
        return {key: part for key, part in found.items() if part is not None}


def load(path: str | Path, options: Mapping[str, str]) -> Recipe:
    """A recipe file and `--key.sub=value` -> settings whose sections, names and data fit together."""
    recipe = stated(path, options)
    shards = recipe.data.opened()[0]
    recipe = _with_outputs(_with_classes(recipe, shards), shards)
    check_data(recipe)
    check_world(recipe, int(os.environ.get("WORLD_SIZE", "1")))
    return recipe


def load_without_data(path: str | Path, options: Mapping[str, str]) -> Recipe:
    """The same where the shards may be on another machine: enough to build the networks. Only counts of classes need them."""
    recipe = stated(path, options)
    key = "discriminator.classes"
    if recipe.classifier:
        key = "classifier.outputs"
    if (str(recipe.discriminator.options.get("classes")) if recipe.discriminator else _outputs(recipe)) != "manifest":
        return recipe
    try:
        shards = recipe.data.opened()[0]
        return _with_outputs(_with_classes(recipe, shards), shards)
    except UserError as problem:
        raise UserError(f"{key}: manifest, but {problem}; --{key}=N does without shards") from None


def stated(path: str | Path, options: Mapping[str, str]) -> Recipe:
    """What recipe and options say by themselves, whether or not there are data."""
    recipe = config.typed(Recipe, config.override(config.read(path), options))
    check_names(recipe)
    check_agreement(recipe)
    return recipe


def check_names(recipe: Recipe) -> None:
    for key, part in recipe.parts().items():
        plugins.check(PACKAGES[key.split(".")[-1]], part.name, part.options, key)
    for name, section in content_parts(recipe.objective.options.get("content", {"l1": "1"})).items():
        plugins.check(PACKAGES["content"], name, section[1], f"objective.content.{name}")
    for name in recipe.metrics:
        plugins.locate(METRICS, name, "metrics")


def check_agreement(recipe: Recipe) -> None:
    """Sections that must say the same."""
    if not recipe.generator and not recipe.classifier:
        raise UserError("generator: this key is missing (or classifier, for a recipe that trains one)")
    if recipe.generator and recipe.discriminator:
        ours, theirs = (str(part.options.get("channels", 3)) for part in (recipe.generator, recipe.discriminator))
        if ours != theirs:
            raise UserError(f"discriminator.channels: {theirs}, but the generator makes images of {ours}")
    if recipe.keep.best:
        known = list(SCORES) if recipe.classifier else metric_facts(recipe, "BETTER")
        if recipe.keep.best not in known:
            metrics = ", ".join(SCORES if recipe.classifier else recipe.metrics)
            near = nearest(recipe.keep.best, known)
            raise UserError(f"keep.best: '{recipe.keep.best}' is no column of the metrics {metrics}{near}")


def metric_facts(recipe: Recipe, fact: str) -> dict[str, str]:
    """What the files of the recipe's metrics say of their columns under `BETTER` or `NEEDS`."""
    paths = [plugins.locate(METRICS, name, "metrics")[1] for name in recipe.metrics]
    return {column: value for path in paths for column, value in (plugins.literal(path, fact) or {}).items()}


def senses() -> dict[str, str]:
    """Every column that a validation can have -> whether "higher" or "lower" is better."""
    paths = [plugins.locate(METRICS, name, "metrics")[1] for name in plugins.names(METRICS)]
    found = {column: sense for path in paths for column, sense in (plugins.literal(path, "BETTER") or {}).items()}
    return {**found, **dict.fromkeys(SCORES, "higher")}


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


def _outputs(recipe: Recipe) -> str:
    """What the recipe says of its classifier's outputs; `manifest` where only the shards know."""
    return str(recipe.classifier.options.get("outputs", "manifest")) if recipe.classifier else "none"


def _with_outputs(recipe: Recipe, shards: Shards) -> Recipe:
    """A classifier's outputs are as many as `objective.labels`; `balance: weights` needs to know how common each is."""
    if not recipe.classifier:
        return recipe
    wanted = config.typed(_Labels, {"labels": recipe.objective.options.get("labels", "class")}, "objective").labels
    labels, stated = labels_of(wanted, shards, "objective.labels"), _outputs(recipe)
    if stated not in ("manifest", str(len(labels.names))):
        raise UserError(
            f"classifier.outputs: {stated}, but objective.labels are {labels}; leave it out, or say {len(labels.names)}"
        )
    classifier = Part(name=recipe.classifier.name, **{**recipe.classifier.options, "outputs": len(labels.names)})
    objective = recipe.objective
    if objective.options.get("balance") == "weights":
        found = shares(shards, recipe.data.portion(0), labels)
        for name, share in zip(labels.names, found, strict=True):
            if not share or (labels.kind == "attributes" and share == 1):
                raise UserError(f"objective.balance: weights, but {'no' if not share else 'every'} training sample is '{name}'")
        objective = Part(name=objective.name, **{**objective.options, "shares": list(found)})
    return recipe.model_copy(update={"classifier": classifier, "objective": objective})


class _Labels(Settings):
    labels: Names


def check_data(recipe: Recipe) -> None:
    data, scale = recipe.data, recipe.scale
    if data.crop and data.crop % scale:
        low = data.crop // scale * scale
        around = f"{low} and {low + scale}" if low else f"{scale}"
        raise UserError(f"data.crop: {data.crop} is not a multiple of scale {scale}; nearest are {around}")
    opened = data.opened()
    for source, shards in zip(data.sources, opened, strict=True):
        _check_shards(source, shards, data, scale)
    _check_alike(recipe, opened)
    if data.validation and not Path(data.validation).is_dir() and (is_remote(data.validation) or "{" not in data.validation):
        open_shards(data.validation, "data.validation", data.cached())  # says what is missing, and the nearest name


def _check_shards(source: str, shards: Shards, data: Data, scale: int) -> None:
    if data.on_corrupt == "fail":
        shards.check_sizes()
    if os.environ.get("LOCAL_RANK", "0") == "0":  # once per node is enough
        shards.check_indexes()
    if data.crop and data.crop > shards.manifest.min_side and data.small == "refuse":
        fits = shards.manifest.min_side // scale * scale
        raise UserError(
            f"data.crop: {data.crop} is more than the smallest side of '{source}', {shards.manifest.min_side}; "
            f"{fits} fits, or data.small=replicate repeats the edges of small images"
        )
    if shards.manifest.scale and shards.manifest.scale != scale:
        raise UserError(f"scale: {scale}, but the LR images stored in '{source}' are {shards.manifest.scale} times smaller")
    if shards.manifest.scale and data.augment != Augment():
        raise UserError(
            f"data.augment: '{source}' stores LR images, which it would not fit; it works where LR is made on the way"
        )
    for part in range(len(data.split)):
        if not sum(len(rows) for rows in portion_rows(shards, data.portion(part))):
            raise UserError(f"data.split: no sample of '{source}' falls into part {part + 1} of {list(data.split)}")


def _check_alike(recipe: Recipe, opened: list[Shards]) -> None:
    """Data sets that are mixed meet in one batch."""
    sources, first = recipe.data.sources, opened[0].manifest
    if len(opened) > 1 and (key := next((name for name in ("select", "balance", "split") if getattr(recipe.data, name)), "")):
        raise UserError(f"data.{key}: chooses from one data set; with several in data.train, build shards of what you want")
    classes = recipe.discriminator and str(recipe.discriminator.options.get("classes", "none")) not in ("none", "null")
    for source, shards in zip(sources[1:], opened[1:], strict=True):
        if bool(shards.manifest.scale) != bool(first.scale):
            raise UserError(f"data.train: one of '{sources[0]}' and '{source}' stores LR images and the other does not")
        if shards.manifest.attributes != first.attributes:
            raise UserError(f"data.train: '{sources[0]}' and '{source}' have different attributes")
        if classes and shards.manifest.classes != first.classes:
            raise UserError(f"data.train: '{sources[0]}' and '{source}' have different classes, and a critic learns them")


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
    """Files that networks and content terms start from: published ones are here, or fetched where that is allowed, and
    finished runs fit the recipe."""
    parts = ((*plugins.resolve(PACKAGES[key.split(".")[-1]], p.name, p.options, key), key) for key, p in recipe.parts().items())
    for module, options, key in (*parts, *content_terms(recipe)):
        for file in module.files(options) if hasattr(module, "files") else ():
            pretrained.find(file, key, download=recipe.allow_download)
        if hasattr(module, "check_runs"):
            module.check_runs(options, recipe)
    for column, file in metric_facts(recipe, "NEEDS").items() if recipe.data.validation or recipe.data.split else ():
        pretrained.find(file, f"metrics: {column}", download=recipe.allow_download)


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
    for key, example in {"generator": "rrdb", "discriminator": "acgan", "classifier": "resnet18"}.items():
        if key in phases and getattr(recipe, key) is None:
            raise UserError(f"{key}: the objective '{recipe.objective.name}' trains one; name it, such as {{name: {example}}}")
        if key not in phases and getattr(recipe, key) is not None:
            raise UserError(f"{key}: the objective '{recipe.objective.name}' trains none; leave the section out")


# May differ between a run and its resumption; a section stands for all its keys. Starting weights are of no more use then.
FREE = (
    "steps", "runs", "accumulate", "precision", "compile", "channels_last", "checkpointing", "tf32", "data.workers", "data.trace",
    "data.train", "data.on_corrupt", "data.cache", "data.cache_gb", "data.validation", "data.validation_limit", "save_every",
    "keep", "validate_every", "metrics", "log_every", "log", "zero", "init.generator", "init.discriminator", "init.classifier",
    "allow_download", "max_skipped", "on_save_error", "hang_timeout", "resume",
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
