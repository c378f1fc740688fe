"""The answers of a classifier to all images, over all ranks, and how often they are correct.

A head is one question: which class (one answer per class), or one attribute (without or with). All numbers come from one row
per image, gathered in the order of the images, so they do not depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sr_dist.core import ranks
from sr_dist.data.image_pairs import Batches, ImagePairs, load, numbers_of_this_rank, progress_of
from sr_dist.evaluation.intervals import wilson
from sr_dist.evaluation.partial_results import Abandoned
from sr_dist.recipe.labels import CLASS, Labels

Classify = Callable[[Tensor], Tensor]  # (B, C, H, W) -> logits (B, labels)
BINS = 15  # of confidence, from 0 to 1
GAP = 0.10  # between the accuracies of two classes; beyond it a classifier counts as biased
TOP = 5  # of top-5 accuracy


class Head(NamedTuple):
    name: str
    answers: tuple[str, ...]


class Answers(NamedTuple):
    """A classifier's answers to n images."""

    images: list[str]
    truth: np.ndarray  # (n, heads); -1 where it is unknown
    predicted: np.ndarray  # (n, heads)
    confidence: np.ndarray  # (n, heads): the probability of the predicted answer
    loss: np.ndarray  # (n, heads): -log of the probability of the truth
    above: np.ndarray  # (n, heads): how many answers have a higher probability than the truth


def heads(labels: Labels) -> list[Head]:
    if labels.kind == CLASS:
        return [Head(CLASS, labels.names)]
    return [Head(name, ("without", "with")) for name in labels.names]


@torch.no_grad()
def classify_all(
    classify: Classify, labels: Labels, batches: Batches, device: torch.device,
    workers: int = 0, give_up: Callable[[], bool] = lambda: False,
) -> Answers:  # fmt: skip
    """The answers to all images, in the order of the images, on every rank. All ranks must call."""
    local: list[tuple[np.ndarray, ...]] = []
    names: list[str] = []
    numbers = numbers_of_this_rank(batches)
    with progress_of(batches, numbers, "classifying") as progress:
        for batch in load(batches, numbers, workers):
            if give_up():
                break
            local.append(answer_columns(classify(batch.lr.to(device)), labels, batch))
            names += batch.names
            progress.advance(len(batch.names))
    parts = ranks.all_gather((names, local, give_up()))
    if any(abandoned for _, _, abandoned in parts):
        raise Abandoned
    columns = zip(*(rows for _, part, _ in parts for rows in part), strict=True)  # ranks hold consecutive batches
    return Answers([name for part, _, _ in parts for name in part], *(np.concatenate(column) for column in columns))


def answer_columns(logits: Tensor, labels: Labels, batch: ImagePairs) -> tuple[np.ndarray, ...]:
    """The columns of `Answers` for a batch, (B, heads) each; in float64, so that the sums do not depend on the batches."""
    logits = logits.double().cpu()
    if labels.kind == CLASS:
        truth = batch.label[:, None]
        probabilities = logits.softmax(1)[:, None]  # (B, heads, answers)
    else:
        unknown = torch.full_like(batch.label, -1)
        truth = torch.stack([batch.attributes.get(name, unknown) for name in labels.names], 1).long()
        probabilities = torch.stack([(-logits).sigmoid(), logits.sigmoid()], 2)
    confidence, predicted = probabilities.max(2)
    of_truth = probabilities.gather(2, truth.clamp(min=0)[..., None])[..., 0]
    above = (probabilities > of_truth[..., None]).sum(2)
    return tuple(values.numpy() for values in (truth, predicted, confidence, -of_truth.clamp(min=1e-300).log(), above))


def summary(answers: Answers, labels: Labels) -> dict[str, float | None]:
    """For the log: means over heads, and each attribute's accuracy if there are several."""
    by_head = head_statistics(answers, labels)
    values = {name: [head[name] for head in by_head.values()] for name in ("loss", "accuracy", "balanced_accuracy", "ece")}
    row = {name: None if None in column else float(np.mean(column)) for name, column in values.items()}
    return row | ({f"accuracy_{name}": head["accuracy"] for name, head in by_head.items()} if len(by_head) > 1 else {})


def head_statistics(answers: Answers, labels: Labels) -> dict[str, dict[str, Any]]:
    """Head -> counts, accuracies, calibration, confusion."""
    return {head.name: _statistics(answers, number, head) for number, head in enumerate(heads(labels))}


def _statistics(answers: Answers, number: int, head: Head) -> dict[str, Any]:
    known = answers.truth[:, number] >= 0
    truth, predicted, confidence, loss, above = (column[known, number] for column in answers[1:])
    table = confusion(truth, predicted, len(head.answers))
    per_class = {name: _share(row[i], row.sum()) for i, (name, row) in enumerate(zip(head.answers, table, strict=True))}
    accuracies = [share for share in per_class.values() if share is not None]
    correct = int(np.trace(table))
    ece, bins = calibration(confidence, predicted == truth)
    return {
        "n": int(known.sum()),
        "accuracy": _share(correct, int(known.sum())),
        "accuracy_interval": list(wilson(correct, int(known.sum()))) if known.any() else None,
        **({"top5": _share((above < TOP).sum(), len(above))} if len(head.answers) > TOP else {}),
        "balanced_accuracy": float(np.mean(accuracies)) if accuracies else None,
        "per_class": {name: {"n": int(table[i].sum()), "accuracy": per_class[name]} for i, name in enumerate(head.answers)},
        "confusion": table.tolist(),  # a row per truth, a column per answer
        "loss": float(loss.mean()) if len(loss) else None,
        "ece": ece,
        "bins": bins,
        "warning": bias(head, per_class),
    }


def confusion(truth: np.ndarray, predicted: np.ndarray, answers: int) -> np.ndarray:
    """(answers, answers) counts: a row per truth, a column per answer."""
    return np.bincount(truth * answers + predicted, minlength=answers**2).reshape(answers, answers)


def calibration(confidence: np.ndarray, correct: np.ndarray) -> tuple[float | None, list[dict[str, Any]]]:
    """The expected calibration error: |confidence - accuracy|, weighted by the images in each bin of confidence; and the bins
    that are not empty."""
    bin_of_image = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    bins, total = [], 0.0
    for i in range(BINS):
        inside = bin_of_image == i
        n = int(inside.sum())
        if n:
            mean, accuracy = float(confidence[inside].mean()), float(correct[inside].mean())
            total += abs(mean - accuracy) * n
            bins.append({"to": round((i + 1) / BINS, 4), "n": n, "confidence": mean, "accuracy": accuracy})
    return (total / len(confidence) if len(confidence) else None), bins


def bias(head: Head, per_class: Mapping[str, float | None]) -> str | None:
    """A warning if a classifier knows one class much better. A network that it guides learns the same bias."""
    accuracies = {name: share for name, share in per_class.items() if share is not None}
    if len(accuracies) < 2:
        return None
    best, worst = max(accuracies, key=lambda name: accuracies[name]), min(accuracies, key=lambda name: accuracies[name])
    if accuracies[best] - accuracies[worst] <= GAP:
        return None
    return (
        f"{head.name} is biased: {accuracies[best]:.1%} of '{best}' are correct, but {accuracies[worst]:.1%} of '{worst}'; "
        f"balance the data, or networks that it guides learn this bias"
    )


def worst_mistakes(answers: Answers, labels: Labels, count: int) -> list[dict[str, Any]]:
    """The wrong answers with the highest confidence, highest first."""
    wrong = np.argwhere((answers.predicted != answers.truth) & (answers.truth >= 0))
    order = sorted(wrong.tolist(), key=lambda index: (-answers.confidence[tuple(index)], *index))[:count]
    mistakes, questions = [], heads(labels)
    for i, number in order:
        head = questions[number]
        mistakes.append(
            {
                "image": answers.images[i],
                "head": head.name,
                "truth": head.answers[answers.truth[i, number]],
                "said": head.answers[answers.predicted[i, number]],
                "confidence": float(answers.confidence[i, number]),
            }
        )
    return mistakes


def _share(part: int, whole: int) -> float | None:
    return int(part) / int(whole) if whole else None
