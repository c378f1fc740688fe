"""The evaluation behind `sr_dist.evaluate`: opens methods, images and metrics, scores, and writes the report."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import torch

from sr_dist.core import plugins, ranks
from sr_dist.core.errors import UserError
from sr_dist.core.files import InUse, lock_file
from sr_dist.core.passwords import without_passwords
from sr_dist.core.plugins import PACKAGES
from sr_dist.core.version import __version__
from sr_dist.data.folder_images import LRFolder
from sr_dist.data.image_pairs import Batches
from sr_dist.data.images import Contents, Images, ShardImages, contents_of, open_images
from sr_dist.data.select import Portion
from sr_dist.evaluation.baselines import Upscale, baseline
from sr_dist.evaluation.classifiers.classifier_answers import ORIGINAL, NamedClassifier
from sr_dist.evaluation.distances.extractor import open_extractor
from sr_dist.evaluation.distances.reference_cache import References, default_folder
from sr_dist.evaluation.metric_set import Metrics, open_metrics
from sr_dist.evaluation.partial_results import PartialResults, identity
from sr_dist.evaluation.presets import BASELINES
from sr_dist.evaluation.protocol import Protocol, protocol
from sr_dist.evaluation.report import folders, report
from sr_dist.evaluation.report.markdown import markdown
from sr_dist.evaluation.report.page import example_images, page
from sr_dist.evaluation.scoring import Scoring, score
from sr_dist.models import trained
from sr_dist.models.frozen_classifier import FrozenClassifier
from sr_dist.models.tiling import adapt_channels
from sr_dist.models.trained import TrainedGenerator
from sr_dist.recipe.labels import check_fits

LOCK = ".evaluation.lock"  # not .lock, which belongs to the training if OUT is a run folder


@dataclass(frozen=True)
class ImageOptions:
    """Which images to score, and how the methods get them."""

    data: str
    lr: str | None = None
    limit: int | None = None
    portion: Portion | None = None
    degradation: str = "bicubic"
    batch: int = 8
    workers: int = 0


@dataclass(frozen=True)
class MetricOptions:
    """What to measure."""

    protocol: str
    metrics: tuple[str, ...]
    classifiers: tuple[str, ...] = ()
    resize: str = "clean"
    extractor: str | None = None
    cache: str = ""
    allow_download: bool = False


def evaluate(
    names: Sequence[str], image_options: ImageOptions, metric_options: MetricOptions, scale: int | None, out: str | None
) -> Path:
    """Scores methods by name and writes the report: -> its folder. Reports mistakes before it reads an image. All ranks must
    call."""
    generators = [trained.open_generator(name, "METHOD", scale) for name in names if name not in BASELINES]
    scale = common_scale(scale, generators)
    rules = protocol(metric_options.protocol, scale)
    batches = open_batches(image_options, scale)
    frozen = open_classifiers(metric_options.classifiers, batches.images)

    accelerator = ranks.open_accelerator("no")
    make_deterministic()
    device = accelerator.device
    extractor = open_extractor(metric_options.extractor, device, metric_options.resize)
    classifiers = named_classifiers(frozen, device)
    metrics = open_metrics(
        metric_options.metrics, device, metric_options.resize, extractor, metric_options.allow_download, classifiers
    )
    if ranks.is_first():
        print("".join(f"{line}\n" for line in plugins.foreign_code()), end="", flush=True)
    methods, sources = named_methods(generators, scale, device)
    contents = contents_of(batches.images)
    facts = identity_facts(image_options, rules, contents.digest(), metrics, sources)
    name, planned = identity(facts), plan(image_options, contents, metrics, methods, facts)
    folder = Path(out) if out else output_folder(names, generators, planned, name)
    in_the_way = not folders.is_free(folder, planned, name)  # only where the user named the folder
    with exclusive(folder):
        results = PartialResults(folder / ".partial" / name)
        references = open_references(metric_options.cache, image_options.batch, facts)
        try:
            scores = score(methods, batches, Scoring(rules, metrics, device, image_options.workers, partial_results=results,
                                                     references=references))  # fmt: skip
        except UserError:
            results.remove_empty_folders()
            raise

        def write_report() -> None:
            finished = report.Report(
                rules, without_passwords(image_options.data), batches.images.names, list(methods), scores, sources, metrics,
                batches.notes(), image_options.portion, inputs(facts),
            )  # fmt: skip
            text = markdown(finished)
            if in_the_way:
                print(folders.move_away(folder))
            report.write(folder, finished, text, page(finished, example_images(finished, batches, methods, device)))
            print(text)
            print(f"report: {folder / 'report.html'}")

        ranks.on_first(write_report)
        results.remove()
    accelerator.end_training()
    ranks.destroy_group()
    return folder


def open_batches(options: ImageOptions, scale: int) -> Batches:
    lr = LRFolder(options.lr, scale)
    images = open_images(options.data, options.limit, "data", lr=lr, portion=options.portion)
    if not images.names:
        raise UserError(f"data: no image of '{options.data}' is in {options.portion}")
    module, settings = plugins.resolve(PACKAGES["degradation"], options.degradation, {}, "degradation")
    return Batches(images, scale, module.build(settings, scale), options.batch)


def open_classifiers(runs: Sequence[str], images: Images) -> list[FrozenClassifier]:
    """Refuses classifiers of labels that the shards do not have. A folder of images has no labels and needs none."""
    classifiers = []
    for run in runs:
        classifier = trained.open_classifier(run, "attributes")
        if isinstance(images, ShardImages):
            check_fits(classifier.labels, images.reader.shards.label_names, f"attributes: '{run}'")
        classifiers.append(classifier)
    return classifiers


def named_classifiers(classifiers: Sequence[FrozenClassifier], device: torch.device) -> list[NamedClassifier]:
    """Moves classifiers to the device and gives them unique names."""
    result: dict[str, NamedClassifier] = {}
    for one in classifiers:
        about = {"weights": str(one.file), "sha256": one.sha256, "size": one.size, "channels": one.channels}
        name = unique_name(one.name, result)
        result[name] = NamedClassifier(name, one.labels, one.to(device), about)
    return list(result.values())


def named_methods(
    generators: Sequence[TrainedGenerator], scale: int, device: torch.device
) -> tuple[dict[str, Upscale], dict[str, dict[str, Any]]]:
    """(name -> method, baselines first; name -> source of a trained method)."""
    methods: dict[str, Upscale] = {name: baseline(name, scale) for name in BASELINES}
    sources: dict[str, dict[str, Any]] = {}
    for generator in generators:
        name = unique_name(generator.name, {*methods, ORIGINAL})
        methods[name], sources[name] = upscaler(generator, device), source(generator)
    return methods, sources


def upscaler(generator: TrainedGenerator, device: torch.device) -> Upscale:
    return adapt_channels(copy.deepcopy(generator.network).to(device).eval(), generator.channels, generator.scale)


def source(generator: TrainedGenerator) -> dict[str, Any]:
    return {
        "weights": str(generator.file),
        "sha256": generator.sha256,
        "step": generator.step,
        **({"run_id": run} if (run := trained.run_of(generator.file)) else {}),
        "parameters": sum(p.numel() for p in generator.network.parameters()),
    }


def unique_name(name: str, taken: Collection[str]) -> str:
    """Numbers a name that is taken: two runs in different folders may have the same name."""
    return name if name not in taken else next(f"{name} ({i})" for i in range(2, 1000) if f"{name} ({i})" not in taken)


def make_deterministic() -> None:
    """The same files give the same numbers, on GPUs too: no kernels chosen by timing, and no TF32."""
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")


def identity_facts(
    options: ImageOptions, rules: Protocol, images: str, metrics: Metrics, sources: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Everything that the numbers depend on."""
    return {
        "images": images,
        "portion": str(options.portion or Portion()),
        "degradation": options.degradation,
        "lr": str(Path(options.lr).resolve()) if options.lr else None,
        "protocol": rules.describe(),
        "batch": options.batch,
        "columns": metrics.better,
        "missing": sorted(metrics.missing),
        "features": metrics.extractor.describe() if metrics.extractor else None,
        "methods": [[name, about["sha256"]] for name, about in sources.items()],  # ordered, because arrays have their numbers
        "classifiers": [[classifier.name, classifier.about["sha256"]] for classifier in metrics.classifiers],
        "versions": {"sr_dist": __version__, **{name: metadata.version(name) for name in report.LIBRARIES}},
    }


def open_references(cache: str, batch: int, facts: dict[str, Any]) -> References | None:
    """The cache of HR features, which do not depend on the methods."""
    if cache == "none" or not facts["features"]:
        return None
    folder = Path(cache) if cache else default_folder()
    about = {"images": facts["images"], "scale": facts["protocol"]["scale"], "batch": batch, **facts["features"]}
    return References(folder, about)


@contextmanager
def exclusive(out: Path) -> Iterator[None]:
    """Locks the folder against a second evaluation. All ranks must call."""

    def locked() -> IO[str]:
        try:
            out.mkdir(parents=True, exist_ok=True)
            return lock_file(out / LOCK)
        except OSError as error:
            raise UserError(f"out: '{out}' cannot be created or written: {error.strerror}") from None
        except InUse as user:
            raise UserError(f"out: '{out}' is in use by {user}; wait for it, or give another folder") from None

    lock = ranks.on_first(locked)
    try:
        yield
    finally:
        if lock:
            (out / LOCK).unlink(missing_ok=True)
            lock.close()
            with suppress(OSError):  # not empty, as it should be
                out.rmdir()


def common_scale(requested: int | None, generators: Sequence[TrainedGenerator]) -> int:
    scales = {generator.scale: generator.name for generator in generators}
    if len(scales) > 1:
        raise UserError(f"METHOD: different scales: {', '.join(f'{name} x{scale}' for scale, name in scales.items())}")
    if not scales and requested is None:
        raise UserError("scale: no METHOD has a scale of its own; give --scale=N")
    return requested or next(iter(scales))


def output_folder(names: Sequence[str], generators: Sequence[TrainedGenerator], planned: folders.Tree, name: str) -> Path:
    """RUN/eval/STEP of the first run, else eval/; with -2, ... where another report would be lost. All ranks must call."""
    runs = zip([Path(name) for name in names if name not in BASELINES], generators, strict=True)
    wanted = next((run / "eval" / f"{generator.step:07d}" for run, generator in runs if trained.is_run(run)), Path("eval"))
    folder = ranks.broadcast_from_first(folders.free_folder(wanted, planned, name))
    if folder != wanted and ranks.is_first():
        print(f"note: '{wanted}' has a {folders.summary(wanted)} that this one does not cover; this one goes to '{folder}'")
    return folder


def plan(
    image_options: ImageOptions, contents: Contents, metrics: Metrics, methods: Collection[str], facts: dict[str, Any]
) -> folders.Tree:  # fmt: skip
    """What the report will have, in the form of report.json."""
    columns = [column for column in metrics.better if column not in metrics.missing]
    extractor = {metrics.extractor_key: metrics.extractor.describe()} if metrics.extractor else {}
    tree = {
        "data": without_passwords(image_options.data),
        "portion": image_options.portion.describe() if image_options.portion else None,
        "n": len(contents.names),
        "inputs": inputs(facts),
        "protocol": {**facts["protocol"], **metrics.conditions(columns), **extractor},
        "methods": list(methods),
        "columns": columns,
        "sources": {name: {"sha256": sha256} for name, sha256 in facts["methods"]},
        "attributes": {name: {"sha256": sha256} for name, sha256 in facts["classifiers"]},
    }
    return {**json.loads(json.dumps(tree)), "digest_of_first": contents.digest}


def inputs(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What distinguishes two evaluations of the same data."""
    return {key: facts[key] for key in ("images", "degradation", "lr")}
