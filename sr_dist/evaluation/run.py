"""From the words of `sr_dist.evaluate` to a report."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from sr_dist.core import plugins, ranks
from sr_dist.core.errors import UserError
from sr_dist.core.files import InUse, claimed, sha256
from sr_dist.core.plugins import PACKAGES
from sr_dist.core.version import __version__
from sr_dist.data.images import Batches, Images, ShardImages, content, open_images
from sr_dist.data.select import Portion
from sr_dist.evaluation.baselines import Upscale, baseline
from sr_dist.evaluation.classifiers.classifier_answers import ORIGINAL, Judge
from sr_dist.evaluation.distances.own_extractor import open_own
from sr_dist.evaluation.distances.reference_cache import References, default_folder
from sr_dist.evaluation.metric_set import Metrics, open_metrics
from sr_dist.evaluation.partial_results import Parts, identity
from sr_dist.evaluation.presets import BASELINES
from sr_dist.evaluation.protocol import Protocol, protocol
from sr_dist.evaluation.report import report
from sr_dist.evaluation.report.page import page, pictures
from sr_dist.evaluation.scoring import score
from sr_dist.models import trained
from sr_dist.models.frozen_classifier import FrozenClassifier
from sr_dist.models.tiling import for_any_colour
from sr_dist.recipe.labels import check_fits

LOCK = ".evaluation.lock"  # and not .lock, which is the training's where OUT is a run folder
OTHERS = ("torch", "torchmetrics", "lpips", "clean-fid", "pillow", "numpy")  # whose versions numbers depend on


@dataclass(frozen=True)
class ImageSet:
    """The images to score, and how they reach a network."""

    data: str
    lr: str | None = None
    limit: int | None = None
    portion: Portion | None = None
    degradation: str = "bicubic"
    batch: int = 8
    workers: int = 0


@dataclass(frozen=True)
class Measures:
    """What is measured."""

    protocol: str
    metrics: tuple[str, ...]
    classifiers: tuple[str, ...] = ()
    resize: str = "clean"
    extractor: str | None = None
    cache: str = ""
    allow_download: bool = False


def evaluate(names: Sequence[str], source: ImageSet, measures: Measures, scale: int | None, out: str | None) -> None:
    """Scores methods by name and writes the report. All ranks must call. Mistakes are reported before any image is read."""
    restorers = [trained.open_generator(name, "METHOD", scale) for name in names if name not in BASELINES]
    scale = common_scale(scale, restorers)
    rules = protocol(measures.protocol, scale)
    images = open_images(source.data, source.limit, "data", lr=source.lr, scale=scale, portion=source.portion)
    if not images.names:
        raise UserError(f"data: no image of '{source.data}' is in {source.portion}")
    classifiers = open_classifiers(measures.classifiers, images)
    module, options = plugins.resolve(PACKAGES["degradation"], source.degradation, {}, "degradation")
    batches = Batches(images, scale, module.build(options, scale), source.batch)
    folder = Path(out) if out else output_folder(names, restorers, source, measures)

    accelerator = ranks.open_accelerator("no")
    repeatable()
    device = accelerator.device
    own = open_own(measures.extractor, device, measures.resize)
    metrics = open_metrics(measures.metrics, device, measures.resize, own, measures.allow_download, judges(classifiers, device))
    methods, sources = everyone(restorers, scale, device)
    facts = everything(source, rules, content(images), metrics, sources)
    with alone(folder):
        parts = Parts(folder / ".partial" / identity(facts))
        try:
            cached = references(measures.cache, source.batch, facts)
            scores = score(methods, batches, rules, device, metrics, source.workers, parts=parts, references=cached)
        except UserError:
            parts.leave()
            raise
        if ranks.is_first():
            found = report.Report(
                rules, source.data, images.names, list(methods), scores, sources, metrics, batches.notes(), source.portion
            )
            report.write(folder, found, page(found, pictures(found, batches, methods, device)))
            print(report.markdown(found))
            print(f"report: {folder / 'report.html'}")
        ranks.wait()
        parts.remove()
    accelerator.end_training()
    ranks.leave()


def open_classifiers(runs: Sequence[str], images: Images) -> list[FrozenClassifier]:
    """Those that are to judge; shards must have what they tell apart. A folder of images has no labels, and none are wanted."""
    found = []
    for run in runs:
        classifier = trained.open_classifier(run, "attributes")
        if isinstance(images, ShardImages):
            check_fits(classifier.labels, images.reader.shards.label_names, f"attributes: '{run}'")
        found.append(classifier)
    return found


def judges(classifiers: list[FrozenClassifier], device: torch.device) -> list[Judge]:
    """The same on their device, under names that differ."""
    found: dict[str, Judge] = {}
    for one in classifiers:
        about = {"weights": str(one.file), "sha256": sha256(one.file), "size": one.size, "channels": one.channels}
        name = unlike(one.name, found)
        found[name] = Judge(name, one.labels, one.to(device), about)
    return list(found.values())


def everyone(
    restorers: list[trained.TrainedGenerator], scale: int, device: torch.device
) -> tuple[dict[str, Upscale], dict[str, Any]]:
    """The methods by name, interpolation first, and where the trained ones come from."""
    methods: dict[str, Upscale] = {name: baseline(name, scale) for name in BASELINES}
    sources: dict[str, Any] = {}
    for restorer in restorers:
        name = unlike(restorer.name, {*methods, ORIGINAL})
        methods[name], sources[name] = bare(restorer, device), source(restorer)
    return methods, sources


def repeatable() -> None:
    """The same numbers from the same files, on GPUs too: no choice of kernels by time, no products of 10 bits."""
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")


def source(restorer: trained.TrainedGenerator) -> dict[str, Any]:
    return {
        "weights": str(restorer.file),
        "sha256": sha256(restorer.file),
        "step": restorer.step,
        "parameters": sum(p.numel() for p in restorer.network.parameters()),
    }


def everything(
    source: ImageSet, rules: Protocol, images: str, metrics: Metrics, sources: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """All that the numbers depend on."""
    return {
        "images": images,
        "portion": str(source.portion or Portion()),
        "degradation": source.degradation,
        "protocol": rules.describe(),
        "batch": source.batch,
        "columns": metrics.better,
        "missing": sorted(metrics.missing),
        "features": metrics.extractor.describe() if metrics.extractor else None,
        "methods": [[name, about["sha256"]] for name, about in sources.items()],  # in order: arrays lie under their numbers
        "classifiers": [[judge.name, judge.about["sha256"]] for judge in metrics.judges],
        "versions": {"sr_dist": __version__, **{name: metadata.version(name) for name in OTHERS}},
    }


def references(cache: str, batch: int, facts: dict[str, Any]) -> References | None:
    """HR features that an earlier evaluation of the same images kept; they depend on no method."""
    if cache == "none" or not facts["features"]:
        return None
    folder = Path(cache) if cache else default_folder()
    about = {"images": facts["images"], "scale": facts["protocol"]["scale"], "batch": batch, **facts["features"]}
    return References(folder, about)


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """No second evaluation writes into the folder meanwhile. All ranks must call."""
    lock, problem = None, ""
    if ranks.is_first():
        try:
            out.mkdir(parents=True, exist_ok=True)
            lock = claimed(out / LOCK)
        except OSError as caught:
            problem = f"out: '{out}' cannot be made or written: {caught.strerror}"
        except InUse as by:
            problem = f"out: '{out}' is in use by {by}; wait for it, or give another"
    if problem := ranks.gather(problem)[0]:
        raise UserError(problem)
    try:
        yield
    finally:
        if lock:
            (out / LOCK).unlink(missing_ok=True)
            lock.close()
            with suppress(OSError):  # something is in it, as should be
                out.rmdir()


def common_scale(asked: int | None, restorers: list[trained.TrainedGenerator]) -> int:
    scales = {restorer.scale: restorer.name for restorer in restorers}
    if len(scales) > 1:
        raise UserError(f"METHOD: methods of unlike scale: {', '.join(f'{name} x{scale}' for scale, name in scales.items())}")
    if not scales and asked is None:
        raise UserError("scale: no METHOD says it; give --scale=N")
    if scales and asked not in (None, *scales):
        raise UserError(f"scale: {asked}, but {restorers[0].name} enlarges by {restorers[0].scale}")
    return asked or next(iter(scales))


def output_folder(
    names: Sequence[str], restorers: list[trained.TrainedGenerator], source: ImageSet, measures: Measures
) -> Path:  # fmt: skip
    """RUN/eval/STEP of the first run, else eval/."""
    runs = zip([Path(name) for name in names if name not in BASELINES], restorers, strict=True)
    folder = next((run / "eval" / f"{restorer.step:07d}" for run, restorer in runs if trained.is_run(run)), Path("eval"))
    return vacant(folder, source, measures)


def vacant(place: Path, source: ImageSet, measures: Measures) -> Path:
    """A report on other images or by another protocol stays where it is; this one then lies beside it."""
    question = [source.data, measures.protocol, source.portion.describe() if source.portion else None]
    for number in itertools.count(2):
        with suppress(OSError, ValueError, KeyError):
            there = json.loads((place / "report.json").read_text(encoding="utf-8"))
            if [there["data"], there["protocol"]["name"], there["portion"]] != json.loads(json.dumps(question)):
                place = place.with_name(f"{place.name.partition('-')[0]}-{number}")
                continue
        return place
    raise AssertionError("unreachable")


def unlike(name: str, taken: Collection[str]) -> str:
    """Two runs of one name in different folders stay apart in the table."""
    return name if name not in taken else next(f"{name} ({i})" for i in range(2, 1000) if f"{name} ({i})" not in taken)


def bare(restorer: trained.TrainedGenerator, device: torch.device) -> Upscale:
    return for_any_colour(copy.deepcopy(restorer.network).to(device).eval(), restorer.channels, restorer.scale)
