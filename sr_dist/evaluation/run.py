"""The evaluation behind `sr_dist.evaluate`: opens methods, images and metrics, scores, and writes the report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import torch

from sr_dist.core import plugins, ranks
from sr_dist.core.errors import UserError, nearest
from sr_dist.core.files import InUse, lock_file
from sr_dist.core.passwords import without_passwords
from sr_dist.core.plugins import PACKAGES
from sr_dist.core.printable import plural
from sr_dist.core.version import __version__
from sr_dist.data.folder_images import LRFolder
from sr_dist.data.image_pairs import MOST_PIXELS, Batches
from sr_dist.data.images import FEW_IMAGES, Images, ShardImages, contents_of, open_images
from sr_dist.data.select import Portion
from sr_dist.evaluation.classifiers.classifier_answers import NamedClassifier
from sr_dist.evaluation.distances.extractor import open_extractor
from sr_dist.evaluation.distances.reference_cache import References, default_folder
from sr_dist.evaluation.methods import (
    Methods,
    SavedImages,
    Sources,
    common_scale,
    named_methods,
    open_generators,
    open_methods,
    unique_name,
)
from sr_dist.evaluation.metric_set import Metrics, open_metrics
from sr_dist.evaluation.partial_results import PartialResults, identity
from sr_dist.evaluation.picture_places import as_identified
from sr_dist.evaluation.pictures import Pictures
from sr_dist.evaluation.protocol import Protocol, protocol
from sr_dist.evaluation.report import folders, report, sets
from sr_dist.evaluation.report.markdown import markdown
from sr_dist.evaluation.report.page import PAGE_BYTES, Beside, example_images, page
from sr_dist.evaluation.scoring import Scoring, score
from sr_dist.evaluation.without_hr import LRBatches, lr_images, without_reference
from sr_dist.evaluation.words import MethodWord, method_word
from sr_dist.models import trained
from sr_dist.models.frozen_classifier import FrozenClassifier
from sr_dist.models.trained import TrainedGenerator
from sr_dist.recipe.labels import check_fits

LOCK = ".evaluation.lock"  # not .lock, which belongs to the training if OUT is a run folder


@dataclass(frozen=True)
class ImageOptions:
    """Which images to score, and how the methods get them."""

    data: str  # empty: LR alone, without HR
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
    all_metrics: bool = False  # `metrics` are all that there are: those that cannot be computed are left out
    crop: bool = False  # pictures of another size are compared in the middle


@dataclass(frozen=True)
class ResultOptions:
    """What is written, and where."""

    out: str | None = None
    save_images: str | None = None
    against: str | None = None
    accept: Callable[[Metrics], None] | None = None  # called before an image is scored; may refuse the metrics
    also: Callable[[Path], None] | None = None  # called with the report's folder, on the first rank


@dataclass(frozen=True)
class ScoredSet:
    """One set of images with the methods that restore it."""

    name: str
    options: ImageOptions
    batches: Batches
    methods: Methods
    sources: Sources
    facts: dict[str, Any]
    planned: folders.Tree

    @property
    def identity(self) -> str:
        return identity(self.facts)


def evaluate(
    words: Sequence[str], image_sets: Mapping[str, ImageOptions], metric_options: MetricOptions, scale: int | None,
    results: ResultOptions,
) -> Path:  # fmt: skip
    """Scores methods by name on one or several sets and writes the report: -> its folder. Mistakes are reported before an image
    is read. All ranks must call."""
    method_words = [method_word(text) for text in words]
    ranks.open_group()
    generators = open_generators(method_words, scale)
    scale = common_scale(scale, list(generators.values()))
    return evaluate_opened(method_words, generators, image_sets, metric_options, scale, results)


def evaluate_opened(
    method_words: Sequence[MethodWord], generators: Mapping[str, TrainedGenerator], image_sets: Mapping[str, ImageOptions],
    metric_options: MetricOptions, scale: int, results: ResultOptions,
) -> Path:  # fmt: skip
    """The same with networks that are open already, by the texts of their words. All ranks must call."""
    rules = protocol(metric_options.protocol, scale)
    batches = {name: open_batches(options, scale) for name, options in image_sets.items()}
    opened = {name: open_methods(method_words, generators, one, metric_options.crop, name) for name, one in batches.items()}
    classifiers = open_classifiers(metric_options.classifiers, [one.images for one in batches.values()])

    accelerator = ranks.open_accelerator("no")
    with deterministic():
        metrics = all_metrics(metric_options, classifiers, next(iter(batches.values())), accelerator.device)
        if results.accept:
            results.accept(metrics)
        if ranks.is_first():
            print("".join(f"{line}\n" for line in plugins.foreign_code()), end="", flush=True)
        scored = []
        for name, (of_set, fitted) in opened.items():
            methods, sources = named_methods(of_set, scale, accelerator.device)
            digest = digest_of(fitted)
            facts = identity_facts(image_sets[name], rules, digest(None), metrics, sources)
            planned = {**plan(image_sets[name], fitted, metrics, methods, facts), "digest_of_first": digest}
            scored.append(ScoredSet(name, image_sets[name], fitted, methods, sources, facts, planned))
        check_against(results.against, scored[0].methods)
        places = Places(method_words, generators, results, accelerator.device)
        return score_sets(scored, metrics, metric_options, rules, places)


@dataclass(frozen=True)
class Places:
    """Where results go, and the device on which they are computed."""

    words: Sequence[MethodWord]
    generators: Mapping[str, TrainedGenerator]
    results: ResultOptions
    device: torch.device

    def saved(self, one: ScoredSet) -> SavedImages | None:
        """The methods that the command names, without those that are pictures already."""
        if not self.results.save_images:
            return None
        named = {word.path for word in self.words if word.is_baseline}
        named |= {name for name in one.sources if not isinstance(one.methods[name], Pictures)}
        return SavedImages(Path(self.results.save_images), frozenset(named), one.name)


def score_sets(scored: Sequence[ScoredSet], metrics: Metrics, options: MetricOptions, rules: Protocol, places: Places) -> Path:
    """Scores every set and writes one report: -> its folder. A killed evaluation leaves its batches. All ranks must call."""
    planned = scored[0].planned if len(scored) == 1 else sets.plan({one.name: one.planned for one in scored})
    name = scored[0].identity
    folder = Path(places.results.out or "") if places.results.out else output_folder(places, planned, name)
    in_the_way = not folders.is_free(folder, planned, name)  # only where the user named the folder
    with exclusive(folder):
        partial = [PartialResults(folder / ".partial" / one.identity) for one in scored]
        finished: dict[str, report.Report] = {}
        try:
            for one, results in zip(scored, partial, strict=True):
                if ranks.is_first():
                    print_count(one)
                references = open_references(options.cache, one.options.batch, one.facts)
                scores = score(one.methods, one.batches, Scoring(
                    rules, metrics, places.device, one.options.workers, partial_results=results, references=references,
                    saved=places.saved(one),
                ))  # fmt: skip
                pictures = [method for method in one.methods.values() if isinstance(method, Pictures)]
                notes = [*one.batches.notes(), *(note for method in pictures for note in method.notes(one.batches.images))]
                finished[one.name] = report.Report(
                    rules, data_of(one.options), one.batches.images.names, list(one.methods), scores, one.sources, metrics,
                    notes, one.options.portion,
                    inputs(one.facts), places.results.against, one.batches.has_hr,
                )  # fmt: skip
        except UserError:
            for results in partial:
                results.remove_empty_folders()
            raise
        ranks.on_first(lambda: write_report(folder, finished, scored, places, in_the_way))
        ranks.barrier()
        for results in partial:
            results.remove()
    return folder


def print_count(one: ScoredSet) -> None:
    """How many images are scored, and whether they are few."""
    count = len(one.batches.images.names)
    print(f"{one.name}: {plural(count, 'image')}" if one.name else plural(count, "image"), flush=True)
    if count < FEW_IMAGES:
        print(f"warning: fewer than {FEW_IMAGES} images: intervals over so few are wide, and differences within them are chance")


def write_report(
    folder: Path, finished: Mapping[str, report.Report], scored: Sequence[ScoredSet], places: Places, in_the_way: bool
) -> None:
    """One set as a report of its own, several as one with a part for each."""
    if in_the_way:
        print(folders.move_away(folder))
    budget = PAGE_BYTES // len(scored)
    examples = {
        one.name: example_images(
            finished[one.name], one.batches, one.methods, places.device, Beside(folder, one.name, budget)
        ) for one in scored
    }  # fmt: skip
    if len(finished) == 1:
        ((name, only),) = finished.items()
        text = markdown(only)
        report.write(folder, only, text, page(only, examples[name]))
    else:
        whole = sets.SetsReport(dict(finished))
        text = sets.markdown_of_sets(whole)
        report.write(folder, whole, text, sets.page_of_sets(whole, examples))
    print(text)
    print(f"report: {folder / 'report.html'}")
    if places.results.also:
        places.results.also(folder)


def all_metrics(options: MetricOptions, frozen: Sequence[FrozenClassifier], batches: Batches, device: torch.device) -> Metrics:
    """All ranks must call."""
    extractor = open_extractor(options.extractor, device, options.resize)
    classifiers = named_classifiers(frozen, device)
    names = options.metrics
    if not batches.has_hr:
        if classifiers:
            raise UserError("attributes: classifiers are compared with HR, and --lr alone has none")
        names = without_reference(names, options.all_metrics)
    metrics = open_metrics(names, device, options.resize, extractor, options.allow_download, classifiers)
    if not metrics.better.keys() - metrics.missing.keys():
        reasons = "; ".join(f"{column}: {reason}" for column, reason in metrics.missing.items())
        raise UserError(f"metrics: {', '.join(names)}: nothing of it can be computed: {reasons}")
    return metrics


def check_against(against: str | None, methods: Collection[str]) -> None:
    if against is not None and against not in methods:
        raise UserError(f"against: no method '{against}'{nearest(against, methods)}")


def digest_of(batches: Batches) -> Callable[[int | None], str]:
    """Identifies HR as it is compared, of all images or of the first ones. All ranks must call."""
    contents, also = contents_of(batches.images), as_identified(batches)

    def digest(first: int | None) -> str:
        plain = contents.digest(first)
        return hashlib.sha256(f"{plain} {json.dumps(also)}".encode()).hexdigest() if also else plain

    return digest


def data_of(options: ImageOptions) -> str:
    return without_passwords(options.data or f"{options.lr} (LR alone)")


def open_batches(options: ImageOptions, scale: int) -> Batches:
    module, settings = plugins.resolve(PACKAGES["degradation"], options.degradation, {}, "degradation")
    degrade = module.build(settings, scale)
    if not options.data:
        return LRBatches(lr_images(options.lr or "", options.limit), scale, degrade, options.batch)
    lr = LRFolder(options.lr, scale)
    images = open_images(options.data, options.limit, "data", lr=lr, portion=options.portion)
    if not images.names:
        raise UserError(f"data: no image of '{options.data}' is in {options.portion}")
    return Batches(images, scale, degrade, options.batch)


def open_classifiers(runs: Sequence[str], image_sets: Sequence[Images]) -> list[FrozenClassifier]:
    """Refuses classifiers of labels that the shards do not have. A folder of images has no labels and needs none. All ranks must
    call."""
    located = ranks.from_first(lambda: [trained.locate(run, "attributes", "classifier") for run in runs])
    classifiers = []
    for run, weights in zip(runs, located, strict=True):
        classifier = trained.open_classifier(weights, "attributes")
        for images in image_sets:
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


@contextmanager
def deterministic() -> Iterator[None]:
    """The same files give the same numbers inside, on GPUs too: no kernels chosen by timing, and no TF32."""
    cudnn, precision = torch.backends.cudnn, torch.get_float32_matmul_precision()
    before = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32
    cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = False, True, False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = before
        torch.set_float32_matmul_precision(precision)


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
        "batch_pixels": MOST_PIXELS,
        "columns": metrics.better,
        "missing": sorted(metrics.missing),
        "conditions": metrics.conditions(list(metrics.better)),
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
    about = {"images": facts["images"], "scale": facts["protocol"]["scale"], "batch": batch, "batch_pixels": MOST_PIXELS}
    about |= facts["features"]
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


def output_folder(places: Places, planned: folders.Tree, name: str) -> Path:
    """RUN/eval/STEP of the first run, else eval/; with -2, ... where another report would be lost. All ranks must call."""
    runs = [(Path(word.path), places.generators[word.text]) for word in places.words if word.text in places.generators]
    wanted = next((run / "eval" / f"{generator.step:07d}" for run, generator in runs if trained.is_run(run)), Path("eval"))
    folder = ranks.broadcast_from_first(folders.free_folder(wanted, planned, name))
    if folder != wanted and ranks.is_first():
        print(f"note: '{wanted}' has a {folders.summary(wanted)} that this one does not cover; this one goes to '{folder}'")
    return folder


def plan(
    image_options: ImageOptions, batches: Batches, metrics: Metrics, methods: Collection[str], facts: dict[str, Any]
) -> folders.Tree:  # fmt: skip
    """What the report will have, in the form of report.json."""
    columns = [column for column in metrics.better if column not in metrics.missing]
    extractor = {metrics.extractor_key: metrics.extractor.describe()} if metrics.extractor else {}
    tree = {
        "data": data_of(image_options),
        "portion": image_options.portion.describe() if image_options.portion else None,
        "n": len(batches.images.names),
        "inputs": inputs(facts),
        "protocol": {**facts["protocol"], **metrics.conditions(columns), **extractor},
        "methods": list(methods),
        "columns": columns,
        "sources": {name: {"sha256": sha256} for name, sha256 in facts["methods"]},
        "attributes": {name: {"sha256": sha256} for name, sha256 in facts["classifiers"]},
    }
    return json.loads(json.dumps(tree))


def inputs(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What distinguishes two evaluations of the same data."""
    return {key: facts[key] for key in ("images", "degradation", "lr")}
