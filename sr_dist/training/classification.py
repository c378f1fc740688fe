"""The parts of a classifier's run that a generator's does not have: its validation, and the report at its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sr_dist.core import ranks
from sr_dist.core.run_layout import run_id
from sr_dist.data.image_pairs import Batches
from sr_dist.data.images import open_images
from sr_dist.data.open_data import cache_for
from sr_dist.data.select import portion_of
from sr_dist.evaluation.classifiers.answers import classify_all, summary
from sr_dist.evaluation.classifiers.classification_report import LARGEST_TABLE, ClassificationReport, reported_weights, write
from sr_dist.models import trained
from sr_dist.models.frozen_classifier import FrozenClassifier
from sr_dist.training.networks import build_degradation
from sr_dist.training.run import Run, ValidationResult

VALIDATION_BATCH = 8  # images of one size that a network sees together, of


def validate(run: Run, name: str, batches: Batches, give_up: Callable[[], bool]) -> ValidationResult:
    """Classifies the images of one validation set with the EMA. All ranks must call."""
    recipe = run.recipe
    classifier = FrozenClassifier(run.ema.network, recipe.name, recipe.folder, run.labels, recipe.data.crop, recipe.channels)
    answers = classify_all(classifier, run.labels, batches, run.device, give_up=give_up)
    metrics = summary(answers, run.labels)
    text = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items() if value is not None)
    return ValidationResult(len(answers.images), metrics, text)


def report(run: Run) -> None:
    """Scores the weights that others will open, once, on the test part of the data or else on the validation images.

    All ranks must call, after the last checkpoint is written.
    """
    batches, description = _report_images(run)
    if batches is None:
        return
    ranks.barrier()
    classifier = trained.open_classifier(str(run.recipe.folder), "name")
    out = run.recipe.folder / "eval" / classifier.file.parent.name
    if ranks.broadcast_from_first(reported_weights(out) == classifier.sha256):
        return
    answers = classify_all(classifier.to(run.device), classifier.labels, batches, run.device, give_up=_beating(run))
    if not ranks.is_first():
        return
    weights = {"file": str(classifier.file), "sha256": classifier.sha256, "step": int(classifier.file.parent.name)}
    if identity := run_id(run.recipe.folder):
        weights["run_id"] = identity
    tree = write(out, ClassificationReport(run.recipe.name, weights, description, classifier.labels, answers), batches)
    for name, head in tree["heads"].items():
        run.log.info(f"{description}: {name} {head['accuracy'] or 0:.2%} of {head['n']} right (step {weights['step']})")
        run.log.table(f"classes/{name}", per_class(head), {"step": run.step, "images": run.images})
        if head["warning"]:
            run.log.info(f"warning: {head['warning']}")
    run.log.info(f"report: {out / 'classification.md'}")


def _beating(run: Run) -> Callable[[], bool]:
    """Called between batches: a long test part is no hang. It never gives up."""

    def beat() -> bool:
        run.watchdog.beat("classifying the images of the report")
        return False

    return beat


def per_class(head: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per class for W&B's table: its count and accuracy, and the count of each answer where there are not too many."""
    answers = list(head["per_class"])
    columns = answers if len(answers) <= LARGEST_TABLE else []
    return [
        {"truth": truth, **head["per_class"][truth], **{f"said {name}": row[i] for i, name in enumerate(columns)}}
        for truth, row in zip(answers, head["confusion"], strict=True)
    ]


def _report_images(run: Run) -> tuple[Batches | None, str]:
    """The images of the report, and their description."""
    data = run.recipe.data
    if len(data.split) < 3:
        by = ", by which the weights were chosen" if run.recipe.keep.best else ""
        name, batches = next(iter(run.validation.items()), ("", None))
        return batches, f"the validation images{f' of {name}' if name else ''}{by}"
    images = open_images(data.sources[0], None, "data.train", cache=cache_for(data), portion=portion_of(data, 2))
    batches = Batches(images, run.recipe.scale, build_degradation(run.recipe), VALIDATION_BATCH)
    return batches, f"the test part of {data.sources[0]}"
