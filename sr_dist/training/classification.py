"""What a classifier's run does that a generator's does not: its validation, and the report at its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sr_dist.core import ranks
from sr_dist.core.files import sha256
from sr_dist.data.images import Batches, open_images
from sr_dist.data.open_data import cache_for
from sr_dist.data.select import portion_of
from sr_dist.evaluation.classifiers.answers import ask, summary
from sr_dist.evaluation.classifiers.classification_report import LARGEST_TABLE, ClassificationReport, write
from sr_dist.models import trained
from sr_dist.models.frozen_classifier import FrozenClassifier
from sr_dist.training.build import VALIDATION_BATCH, build_degradation
from sr_dist.training.run import Findings, Run


def validated(run: Run, batches: Batches, give_up: Callable[[], bool]) -> Findings:
    """The EMA on the validation images. All ranks must call."""
    recipe = run.recipe
    seen = FrozenClassifier(run.ema.network, recipe.name, recipe.folder, run.labels, recipe.data.crop, recipe.channels)
    answers = ask(seen, run.labels, batches, run.device, give_up=give_up)
    metrics = summary(answers, run.labels)
    said = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items() if value is not None)
    return Findings(len(answers.images), metrics, said)


def report(run: Run) -> None:
    """Scores the weights that others will open, once, on the test part of the data, or on the validation images where there is
    none. All ranks must call, after the last checkpoint is written."""
    batches, data = _last_images(run)
    if batches is None:
        return
    ranks.wait()
    chosen = trained.open_classifier(str(run.recipe.folder), "name")
    out = run.recipe.folder / "eval" / chosen.file.parent.name
    if ranks.from_first((out / "classification.json").is_file()):
        return
    answers = ask(chosen.to(run.device), chosen.labels, batches, run.device)
    if ranks.is_first():
        about = {"file": str(chosen.file), "sha256": sha256(chosen.file), "step": int(chosen.file.parent.name)}
        tree = write(out, ClassificationReport(run.recipe.name, about, data, chosen.labels, answers), batches)
        for name, head in tree["heads"].items():
            run.log.say(f"{data}: {name} {head['accuracy'] or 0:.2%} of {head['n']} right (step {about['step']})")
            run.log.table(f"classes/{name}", per_class(head), {"step": run.step, "images": run.step * run.recipe.data.batch})
            if head["warning"]:
                run.log.say(f"warning: {head['warning']}")
        run.log.say(f"report: {out / 'classification.md'}")


def per_class(head: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per class, as W&B's table shows them: how many there were, and, where it is not too wide, how often each answer
    came."""
    answers = list(head["per_class"])
    shown = answers if len(answers) <= LARGEST_TABLE else []
    return [
        {"truth": truth, **head["per_class"][truth], **{f"said {name}": row[i] for i, name in enumerate(shown)}}
        for truth, row in zip(answers, head["confusion"], strict=True)
    ]


def _last_images(run: Run) -> tuple[Batches | None, str]:
    """What the report is about, and in words."""
    data = run.recipe.data
    if len(data.split) < 3:
        return (
            run.validation,
            "the validation images, by which the weights were chosen" if run.recipe.keep.best else "the validation images",
        )
    images = open_images(data.sources[0], None, "data.train", cache=cache_for(data), portion=portion_of(data, 2))
    batches = Batches(images, run.recipe.scale, build_degradation(run.recipe), VALIDATION_BATCH)
    return batches, f"the test part of {data.sources[0]}"
