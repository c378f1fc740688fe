"""The sections of a recipe: every key with its type, its default and one sentence. No torch, no disk, no network.

A run writes all of it, defaults included, into its `recipe.yaml`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction as Ratio
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from sr_dist.core.config import Absent, Fraction, Names, NonNegative, OptionalText, Positive, Settings, Whole, parse_none
from sr_dist.core.passwords import without_passwords
from sr_dist.recipe.steering import DiscriminatorTraining, Health

SET_NAME = r"[\w@+-]+"  # of a validation set: it is part of columns and names a folder of samples
LONGEST_PATTERN = 10_000  # the largest sum of whole weights of mixed data sets

Beta = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Period = Annotated[Positive | None, Absent]  # in steps; none means never


def _sums_to_one(split: tuple[float, ...]) -> tuple[float, ...]:
    if split and not (len(split) in (2, 3) and math.isclose(sum(split), 1, abs_tol=1e-6)):
        raise ValueError(f"{list(split)} are not two or three shares with the sum 1, such as [0.7, 0.15, 0.15]")
    return split


def _count(value: Any) -> Any:
    text = str(value).strip()
    if not re.fullmatch(r"(at most )?[1-9][0-9]*", text):
        raise ValueError(f"'{value}' is neither a number of samples nor 'at most N'")
    return text if text.startswith(AT_MOST) else int(text)


def at_most(count: int | str) -> int | None:
    """N of `at most N`; None for an exact number."""
    return int(count.removeprefix(AT_MOST)) if isinstance(count, str) else None


AT_MOST = "at most "
Count = Annotated[int | str, BeforeValidator(_count)]  # of samples
Split = Annotated[tuple[Share, ...], AfterValidator(_sums_to_one)]  # into training, validation and test


Mode = Literal["no", "bf16", "fp16"]  # of mixed precision


class Part(Settings):
    """A section that names a plug-in file. The `Config` of that file types the other keys."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str
    """The name of a file of the package, or a dotted name of your own, whose code runs."""

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})

    def with_options(self, **changes: Any) -> Part:
        return Part(name=self.name, **{**self.options, **changes})


def whole_weights(weights: Sequence[float]) -> list[int]:
    """The smallest whole numbers in the same proportions. 0.7 means seven tenths."""
    exact = [Ratio(repr(weight)) for weight in weights]
    common = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * common) for weight in exact]
    divisor = math.gcd(*whole)
    return [weight // divisor for weight in whole]


def _sources(value: Any) -> Any:
    """One source, or several with weights."""
    if isinstance(value, list | tuple):
        raise ValueError(f"{list(value)} is a list; several data sets need weights, such as {{data/a: 3, data/b: 1}}")
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
        if without_passwords(str(source)) in map(without_passwords, list(weights)[:-1]):
            raise ValueError(f"'{source}' is named twice")
    if not weights:
        raise ValueError("names no shards")
    if (length := sum(whole_weights(list(weights.values())))) > LONGEST_PATTERN:
        raise ValueError(f"weights in the proportion of whole numbers that add up to {length} are too fine; round them")
    return weights


def _validation(value: Any) -> Any:
    """One set of validation images, or several by name."""
    if isinstance(value, str):
        return parse_none(value)
    if isinstance(value, list | tuple):
        raise ValueError(f"{list(value)} is a list; several sets need names, such as {{set5: data/Set5, set14: data/Set14}}")
    if not isinstance(value, Mapping):
        return value
    for name, source in value.items():
        if not re.fullmatch(SET_NAME, str(name)):
            raise ValueError(f"'{name}' cannot be the name of a set: it has letters, digits, _ @ + -")
        if parse_none(source) is None or not isinstance(source, str):
            raise ValueError(f"'{name}' names no shards and no folder of images")
    if not value:
        raise ValueError("names no set; none means no validation")
    return dict(value)


class Augment(Settings):
    """Changes to training images before LR is made from them. Each has its own random numbers."""

    rotate_degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    """The largest rotation to either side."""
    contrast: Fraction = 0.0
    """0.2 means a factor from 0.8 to 1.2."""
    brightness: Fraction = 0.0
    """0.2 means up to 0.2 darker or lighter."""
    erase: Fraction = 0.0
    """The share of images that lose a rectangle."""


class Data(Settings):
    """The images, and how batches are made of them."""

    train: Annotated[str | dict[str, float], BeforeValidator(_sources)]
    """Shards: a folder, a brace pattern, a URL of a folder, or `pipe:` and a command; or several of them with weights."""
    reader: Literal["indexed", "webdataset"] = "indexed"
    """indexed reads shards with an index; webdataset streams tars without one, with weaker promises."""
    samples: Annotated[Positive | None, Absent] = None
    """With the reader webdataset, the number of images in data.train, for the column `epoch`."""
    validation: Annotated[str | dict[str, str] | None, BeforeValidator(_validation)] = None
    """Shards, or a folder of images; or several sets by name, such as {set5: PLACE, set14: PLACE}."""
    validation_limit: Annotated[Positive | None, Absent] = None
    """Use only the first N images of each validation set."""
    select: dict[str, Count] = {}
    """Sample counts per class, per attribute, for `each_class` or for the `rest`, selected by content hash. `at most N` takes
    all samples where there are fewer."""
    balance: dict[str, tuple[Count, Count]] = {}
    """One attribute with two counts: samples with it and samples without it, selected by content hash."""
    split: Split = ()
    """Shares of data.train for training, validation and test, selected by content hash."""
    crop: Annotated[Positive | None, Absent]
    """The side of HR crops in pixels; none means whole images, one per micro-batch."""
    small: Literal["refuse", "replicate"] = "refuse"
    """How images smaller than the crop are handled; replicate repeats their edges."""
    on_corrupt: Literal["fail", "substitute"] = "fail"
    """How unreadable samples are handled; substitute takes the next sample and records it."""
    cache: OptionalText = None
    """The node's folder for fetched shards; the default is in the folder for temporary files."""
    cache_gb: Annotated[float, Field(gt=0)] = 100.0
    """The size limit of the cache."""
    fetch_at_once: Annotated[Positive | None, Absent] = None
    """The number of shards that a node fetches at a time; by default it follows from measured rates."""
    fetch_ahead: Annotated[Positive | None, Absent] = None
    """The number of shards that a node fetches ahead; by default a window, and more where downloads take long."""
    batch: Positive
    """Images per step, over all ranks."""
    flip: bool = True
    """Flip images at random."""
    rotate: bool = True
    """Rotate images by quarter turns at random."""
    augment: Augment = Augment()
    degradation: Part = Part(name="bicubic")
    """How LR is made if the shards do not store it."""
    window: Positive = 8192
    """The number of samples that are shuffled together. A node must hold the shards of one window at a time."""
    workers: Annotated[int, Field(ge=0, le=256)] = 2
    """Loader worker processes per rank."""
    trace: bool = False
    """Record the keys of every micro-batch."""

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(self.train) if isinstance(self.train, dict) else (self.train,)

    @property
    def weights(self) -> tuple[float, ...]:
        return tuple(self.train.values()) if isinstance(self.train, dict) else (1.0,)

    @property
    def validation_sets(self) -> dict[str, str]:
        """Name -> source; a single set has no name."""
        if isinstance(self.validation, dict):
            return self.validation
        return {"": self.validation} if self.validation else {}

    @staticmethod
    def validation_key(name: str) -> str:
        return f"data.validation.{name}" if name else "data.validation"

    @model_validator(mode="after")
    def _agree(self) -> Data:
        if self.balance and (self.select or len(self.balance) > 1):
            raise ValueError("balance takes one attribute and excludes select; select alone takes any number of groups")
        if self.split and self.validation:
            raise ValueError("validation: with a split, validation is the second part of data.train; say --data.validation=none")
        return self


class Init(Settings):
    """Starting weights."""

    generator: OptionalText = None
    """A run folder or a weights file, of sr_dist or of another project."""
    discriminator: OptionalText = None
    """The same for the discriminator."""
    classifier: OptionalText = None
    """The same for the classifier."""
    partial: bool = False
    """Load the tensors that fit, log their number, and leave the others as initialized."""
    freeze: Names = ()
    """Name patterns of the generator's parameters that are not trained, such as body.*"""


class Optimizer(Settings):
    """The optimizer of a network."""

    name: str = "adam"
    """A file of training/optimizers (adam, adamw, sgd), or a dotted name of your own."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """The learning rate before the schedule."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """For adam and adamw."""
    momentum: Beta = 0.0
    """For sgd."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay; that of adamw is decoupled."""
    clip: Annotated[Annotated[float, Field(gt=0)] | None, Absent] = None
    """The gradient norm above which gradients are clipped."""


class Schedule(Settings):
    """The learning rate as a function of the step: warm-up, then constant, reduced at milestones, or a cosine."""

    name: Literal["constant", "milestones", "cosine"] = "constant"
    """The form after the warm-up."""
    warmup: NonNegative = 0
    """Steps of linear warm-up."""
    milestones: tuple[int, ...] = ()
    """Steps after which the learning rate is multiplied by `factor`."""
    factor: float = 0.5
    """The factor of each milestone."""
    period: Period = None
    """The length of the cosine in steps."""
    restart: bool = False
    """Begin the cosine again after each period."""
    lowest: Fraction = 0.0
    """The factor at the end of a cosine."""

    @model_validator(mode="after")
    def _complete(self) -> Schedule:
        if self.name == "cosine" and not self.period:
            raise ValueError("a cosine needs schedule.period (steps)")
        if self.name == "milestones" and not self.milestones:
            raise ValueError("needs schedule.milestones, such as [50000, 100000]")
        if self.name != "cosine" and (self.restart or self.lowest):
            raise ValueError(f"restart and lowest are for a cosine; schedule.name is {self.name}")
        return self


class Ema(Settings):
    """The moving average of weights, which validation, samples and every other command use."""

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """The decay of the exponential moving average of weights."""
    post_hoc: bool = False
    """Also keep two averages from which sr_dist.curve makes EMAs of any length after training."""


class Keep(Settings):
    """The checkpoints that are not deleted."""

    last: Positive = 3
    """The last N."""
    best: OptionalText = None
    """The best by this validation metric."""
    every: Period = None
    """Every N steps."""


class Zero(Settings):
    """Only for DeepSpeed."""

    discriminator: Annotated[Literal[1, 2, 3] | None, Absent, Whole] = None
    """The discriminator's ZeRO stage, if it differs from the launcher's configuration."""
    persistence_threshold: NonNegative = 0
    """Parameters up to this size stay whole on every rank under stage 3."""


class Log(Settings):
    """Where the log goes besides the run folder."""

    wandb: Literal["off", "offline", "online"] = "off"
    """Whether the rows of metrics.jsonl go to W&B."""
    trackers: Names = ()
    """Trackers that get the rows, such as [wandb, tensorboard]: files of training/trackers, or dotted names of your own."""
    project: str = "sr_dist"
    """The W&B project."""
    sync_every: Period = None
    """Send what W&B wrote offline, with `wandb sync`, in the background every N steps."""
    artifacts: bool = False
    """Send every checkpoint to W&B."""

    @property
    def wandb_mode(self) -> Literal["off", "offline", "online"]:
        """W&B is on if `wandb` says so or `trackers` names it."""
        return "offline" if self.wandb == "off" and "wandb" in self.trackers else self.wandb


class Resume(Settings):
    """What may differ when a run continues."""

    allow: Names = ()
    """Keys that may differ from the recipe with which the run began."""


AUTO = "auto"


def _auto(value: Any) -> Any:
    return {"name": AUTO} if value == AUTO else value


def _keep(value: Any) -> Any:
    return {"last": value} if isinstance(value, str | int) else value


class Recipe(Settings):
    name: str
    """The name of the run folder."""
    seed: int = 0
    """All random numbers follow from it: initial weights, the order of the images, crops, degradations."""
    scale: Annotated[Literal[1, 2, 3, 4, 8], Whole]
    """HR size divided by LR size."""
    steps: Positive
    """The last step."""
    runs: str = "runs"
    """The folder of run folders."""
    data: Data
    generator: Annotated[Part | None, Absent, BeforeValidator(_auto)] = None
    """The network that restores images. `auto` takes the network and its options from init.generator."""
    discriminator: Annotated[Part | None, Absent] = None
    """The network that a GAN objective trains against the generator."""
    classifier: Annotated[Part | None, Absent] = None
    """A classifier to train instead of a generator."""
    objective: Part
    """The losses, and which networks they train."""
    init: Init = Init()
    """Starting weights."""
    optimizer: Optimizer
    discriminator_optimizer: Annotated[Optimizer | None, Absent] = None
    """The default is the generator's optimizer."""
    discriminator_training: DiscriminatorTraining = DiscriminatorTraining()
    schedule: Schedule = Schedule()
    ema: Ema = Ema()
    accumulate: Positive = 1
    """Micro-batches per step and rank."""
    precision: Mode = "no"
    """Mixed precision of the forward passes. Left out, it is that of accelerate launch --mixed_precision."""
    max_skipped: Positive = 20
    """The run stops after this many consecutive steps with gradients that are not finite; at its last step after three."""
    compile: bool | Literal["body"] = False
    """Use torch.compile for both networks; `body` compiles their repeated blocks only, once for all, which is sooner done."""
    batch_norm: Literal["global", "local"] = "global"
    """Batch normalization has the statistics of all ranks' images, or each rank those of its own, as in other projects."""
    channels_last: bool = False
    """Use the channels-last memory layout, which is faster on tensor cores."""
    checkpointing: Names = ()
    """Name patterns of modules of the generator whose activations are recomputed in the backward pass."""
    tf32: bool = True
    """Allow TF32 products (10 bits of mantissa) on GPUs that have them."""
    cudnn_benchmark: bool = False
    """Let cuDNN time its kernels and take the fastest, which suits crops of one size; another process may round differently."""
    save_every: Period = 1000
    """The period of checkpoints in steps."""
    on_save_error: Literal["stop", "continue"] = "stop"
    """How a checkpoint, or a record beside it, that cannot be written is handled."""
    hang_timeout: Annotated[Annotated[float, Field(gt=0)] | None, Absent] = 1800.0
    """Seconds without progress after which a rank ends the job."""
    keep: Annotated[Keep, BeforeValidator(_keep)] = Keep()
    validate_every: Period = 1000
    """The period of validation in steps."""
    validate_first: bool = False
    """Validate also before the first step: a row of step 0 to compare with, and a validation that cannot work fails at once."""
    sample_images: NonNegative = 0
    """The first N images of each validation set are restored whole into samples/STEP/ at every validation."""
    metrics: Names = ("psnr", "ssim")
    """Validation metrics: files of evaluation/metrics, or dotted names of your own."""
    extractor: OptionalText = None
    """The network behind set distances: a trained classifier, or a TorchScript file (its code runs); else the FID Inception."""
    log_every: Positive = 50
    """The period of log rows in steps."""
    log: Log = Log()
    health: Health = Health()
    zero: Zero = Zero()
    resume: Resume = Resume()
    allow_download: bool = False
    """Allow downloading published weights that a loss or a metric needs."""

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
        """The channels of training images: the generator's or the classifier's."""
        part = self.generator or self.classifier
        return int(part.options.get("channels", 3)) if part else 3

    @property
    def discriminator_classes(self) -> str:
        """The discriminator's class head in the recipe: `manifest`, a count, or `none`."""
        stated = str(self.discriminator.options.get("classes", "none")) if self.discriminator else "none"
        return "none" if stated in ("null", "None") else stated

    def optimizer_of(self, phase: str) -> Optimizer:
        return self.discriminator_optimizer or self.optimizer if phase == "discriminator" else self.optimizer

    def parts(self) -> dict[str, Part]:
        """Every part by its key; content terms belong to the objective."""
        parts = {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "classifier": self.classifier,
            "objective": self.objective,
            "data.degradation": self.data.degradation,
        }
        return {key: part for key, part in parts.items() if part is not None}
