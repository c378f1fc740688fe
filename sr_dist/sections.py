"""The sections of a recipe: every key, its type and its default. No torch.

Keys are the words of the log; every default that a recipe does not spell out stands here and in the `recipe.yaml` of its run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from sr_dist.config import Absent, Names, Settings, Whole
from sr_dist.data.cache import Cache, cache_of
from sr_dist.data.format import Shards
from sr_dist.data.order import LONGEST_PATTERN, WINDOW, whole_weights
from sr_dist.data.remote import DEFAULT_GB, is_remote, open_shards
from sr_dist.data.select import Portion

Positive = Annotated[int, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Period = Annotated[Positive | None, Absent]  # every so many steps, or never
Text = Annotated[str | None, Absent]


def _makes_one(split: tuple[float, ...]) -> tuple[float, ...]:
    if split and not (len(split) in (2, 3) and math.isclose(sum(split), 1, abs_tol=1e-6)):
        raise ValueError(f"{list(split)} are not two or three shares that make 1, such as [0.7, 0.15, 0.15]")
    return split


Split = Annotated[tuple[Share, ...], AfterValidator(_makes_one)]  # into training, validation and test


class Part(Settings):
    """A thing that is one file: its name, and options that the file's own `Config` types."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


def _sources(value: Any) -> Any:
    """A source, or sources with weights."""
    if isinstance(value, list | tuple):
        raise ValueError(f"{list(value)} is a list; several data sets come with weights, such as {{data/a: 3, data/b: 1}}")
    if not str(value).strip():
        raise ValueError("is empty; name a folder of shards, a brace pattern or a URL")
    if not isinstance(value, Mapping):
        return value
    weights = {}
    for source, weight in value.items():
        if not str(source).strip():
            raise ValueError("one of the data sets has no name")
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
    split: Split = ()  # of data.train into training, validation and test, by content hash
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
    window: Positive = WINDOW  # samples that are mixed together
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
        stated = self.cache or self.cache_gb != DEFAULT_GB  # for a folder here, too, may say that its tars are elsewhere
        return cache_of(self.cache, self.cache_gb) if remote or stated else None

    def opened(self) -> list[Shards]:
        """The data sets to train on."""
        return [open_shards(source, "data.train", self.cached()) for source in self.sources]

    @model_validator(mode="after")
    def _agree(self) -> Data:
        if self.balance and (self.select or len(self.balance) > 1):
            raise ValueError("balance takes one attribute and no select beside it; select alone takes any number of groups")
        if self.split and self.validation:
            raise ValueError("validation: with a split it is the second part of data.train; leave one of them out")
        return self

    def portion(self, part: int) -> Portion:
        """The samples of data.train that are for training (0), validation (1) or the test at the end (2)."""
        part = part if self.split else 0
        for name, (there, elsewhere) in self.balance.items():
            return Portion({name: there, "rest": elsewhere}, self.split, part, "data.balance")
        return Portion(self.select, self.split, part)


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
    extractor: Text = None  # of its distances between sets: a finished classifier or a TorchScript file; else the FID Inception
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

    @property
    def critic_classes(self) -> str:
        """What the recipe says of the critic's class head: `manifest`, a count, or `none`."""
        said = str(self.discriminator.options.get("classes", "none")) if self.discriminator else "none"
        return "none" if said in ("null", "None") else said

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
