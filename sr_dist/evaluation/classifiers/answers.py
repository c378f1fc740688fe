"""What a classifier says of images, over all ranks, and how right it is: counts, not averages of averages.

A head is one question: which class (as many answers as classes), or one attribute (without or with). Everything is worked out
from one row per image, gathered in the order of the images, so it does not depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sr_dist.core import ranks
from sr_dist.data.images import Batches, Scored, load, numbers_of_this_rank
from sr_dist.evaluation.intervals import wilson
from sr_dist.evaluation.partial_results import Abandoned
from sr_dist.recipe.columns import CLASSIFICATION
from sr_dist.recipe.labels import CLASS, Labels

Classify = Callable[[Tensor], Tensor]  # (B, C, H, W) -> logits (B, labels)
BETTER = dict.fromkeys(CLASSIFICATION, "higher")
BINS = 15  # of confidence, from 0 to 1
GAP = 0.10  # between the accuracies of two classes, beyond which a classifier is called biased
FIRST = 5  # answers among which the truth may be, where there are more


class Head(NamedTuple):
    name: str
    answers: tuple[str, ...]


class Answers(NamedTuple):
    """Of n images, what is true, what was said, how surely, -log of the probability that the truth was given, and how many
    answers were given a greater one."""

    images: list[str]
    truth: np.ndarray  # (n, heads); -1 where it is not known
    said: np.ndarray  # (n, heads)
    confidence: np.ndarray  # (n, heads)
    loss: np.ndarray  # (n, heads)
    above: np.ndarray  # (n, heads); 0 where what was said is true


def heads(labels: Labels) -> list[Head]:
    if labels.kind == CLASS:
        return [Head(CLASS, labels.names)]
    return [Head(name, ("without", "with")) for name in labels.names]


@torch.no_grad()
def ask(
    classify: Classify, labels: Labels, batches: Batches, device: torch.device,
    workers: int = 0, give_up: Callable[[], bool] = lambda: False,
) -> Answers:  # fmt: skip
    """The answers about all images, on every rank, in the order of the images. All ranks must call."""
    mine: list[tuple[np.ndarray, ...]] = []
    names: list[str] = []
    for batch in load(batches, numbers_of_this_rank(batches), workers):
        if give_up():
            break
        mine.append(answered(classify(batch.lr.to(device)), labels, batch))
        names += batch.names
    parts = ranks.gather((names, mine, give_up()))
    if any(abandoned for _, _, abandoned in parts):
        raise Abandoned
    columns = zip(*(rows for _, part, _ in parts for rows in part), strict=True)  # ranks hold consecutive batches
    return Answers([name for part, _, _ in parts for name in part], *(np.concatenate(column) for column in columns))


def answered(logits: Tensor, labels: Labels, batch: Scored) -> tuple[np.ndarray, ...]:
    """The columns of `Answers` about a batch, (B, heads) each; in float64, so that sums can be compared."""
    logits = logits.double().cpu()
    if labels.kind == CLASS:
        truth = batch.label[:, None]
        chances = logits.softmax(1)[:, None]  # (B, heads, answers)
    else:
        unknown = torch.full_like(batch.label, -1)
        truth = torch.stack([batch.attributes.get(name, unknown) for name in labels.names], 1).long()
        chances = torch.stack([(-logits).sigmoid(), logits.sigmoid()], 2)
    confidence, said = chances.max(2)
    given = chances.gather(2, truth.clamp(min=0)[..., None])[..., 0]
    above = (chances > given[..., None]).sum(2)
    return tuple(values.numpy() for values in (truth, said, confidence, -given.clamp(min=1e-300).log(), above))


def summary(answers: Answers, labels: Labels) -> dict[str, float | None]:
    """For the log: means over heads, and each attribute's accuracy where there are several."""
    found = judged(answers, labels)
    values = {name: [head[name] for head in found.values()] for name in ("loss", "accuracy", "balanced_accuracy", "ece")}
    row = {name: None if None in some else float(np.mean(some)) for name, some in values.items()}
    return row | ({f"accuracy_{name}": head["accuracy"] for name, head in found.items()} if len(found) > 1 else {})


def judged(answers: Answers, labels: Labels) -> dict[str, dict[str, Any]]:
    """Everything about every head, by its name."""
    return {head.name: _judged(answers, number, head) for number, head in enumerate(heads(labels))}


def _judged(answers: Answers, number: int, head: Head) -> dict[str, Any]:
    known = answers.truth[:, number] >= 0
    truth, said, confidence, loss, above = (column[known, number] for column in answers[1:])
    table = confusion(truth, said, len(head.answers))
    of_class = {name: _share(row[i], row.sum()) for i, (name, row) in enumerate(zip(head.answers, table, strict=True))}
    there = [share for share in of_class.values() if share is not None]
    right = int(np.trace(table))
    ece, bins = calibration(confidence, said == truth)
    return {
        "n": int(known.sum()),
        "accuracy": _share(right, int(known.sum())),
        "accuracy_interval": list(wilson(right, int(known.sum()))) if known.any() else None,
        **({"top5": _share((above < FIRST).sum(), len(above))} if len(head.answers) > FIRST else {}),
        "balanced_accuracy": float(np.mean(there)) if there else None,
        "per_class": {name: {"n": int(table[i].sum()), "accuracy": of_class[name]} for i, name in enumerate(head.answers)},
        "confusion": table.tolist(),  # a row per truth, a column per answer
        "loss": float(loss.mean()) if len(loss) else None,
        "ece": ece,
        "bins": bins,
        "warning": bias(head, of_class),
    }


def confusion(truth: np.ndarray, said: np.ndarray, answers: int) -> np.ndarray:
    """(answers, answers) counts: a row per truth, a column per answer."""
    return np.bincount(truth * answers + said, minlength=answers**2).reshape(answers, answers)


def calibration(confidence: np.ndarray, right: np.ndarray) -> tuple[float | None, list[dict[str, Any]]]:
    """How far confidence and accuracy lie apart, weighted by the images in each bin of confidence; and the bins that have any."""
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    bins, total = [], 0.0
    for i in range(BINS):
        here = place == i
        if here.any():
            sure, accurate = float(confidence[here].mean()), float(right[here].mean())
            total += abs(sure - accurate) * int(here.sum())
            bins.append({"to": round((i + 1) / BINS, 4), "n": int(here.sum()), "confidence": sure, "accuracy": accurate})
    return (total / len(confidence) if len(confidence) else None), bins


def bias(head: Head, of_class: dict[str, float | None]) -> str | None:
    """A classifier that knows one class much better teaches that to whatever it guides."""
    there = {name: share for name, share in of_class.items() if share is not None}
    if len(there) < 2:
        return None
    best, worst = max(there, key=lambda name: there[name]), min(there, key=lambda name: there[name])
    if there[best] - there[worst] <= GAP:
        return None
    return (
        f"{head.name} is biased: {there[best]:.1%} of '{best}' are right, but {there[worst]:.1%} of '{worst}'; "
        f"balance the data, or what it guides learns this"
    )


def worst_mistakes(answers: Answers, labels: Labels, count: int) -> list[dict[str, Any]]:
    """The wrong answers that were given most surely, the surest first."""
    wrong = np.argwhere((answers.said != answers.truth) & (answers.truth >= 0))
    order = sorted(wrong.tolist(), key=lambda place: (-answers.confidence[tuple(place)], *place))[:count]
    found, questions = [], heads(labels)
    for i, number in order:
        words = questions[number].answers
        found.append(
            {
                "image": answers.images[i],
                "head": questions[number].name,
                "truth": words[answers.truth[i, number]],
                "said": words[answers.said[i, number]],
                "confidence": float(answers.confidence[i, number]),
            }
        )
    return found


def _share(part: int, whole: int) -> float | None:
    return int(part) / int(whole) if whole else None
