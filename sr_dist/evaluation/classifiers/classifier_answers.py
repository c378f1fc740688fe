"""The answers of trained classifiers to HR and to every method's output, collected in the one pass over the images.

Classifiers get images as the protocol stores them (8 bits). Their answers to a batch are arrays of its partial results.
Together they are `Answers` in the order of the images, so the numbers do not depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from sr_dist.core import ranks
from sr_dist.core.errors import UserError
from sr_dist.data.image_pairs import ImagePairs
from sr_dist.evaluation.classifiers.answers import TOP, Answers, Classify, Head, answer_columns, heads
from sr_dist.evaluation.partial_results import PartialResults
from sr_dist.evaluation.protocol import Protocol, as_stored
from sr_dist.recipe.labels import CLASS, Labels

ORIGINAL = "HR"  # as the name of a method; it is the ceiling
NOT_FINITE = "the method's output for an image is not finite"
NOT_KNOWN = "the images have no labels for it"
MethodAnswers = dict[str, Answers]  # of one classifier, by method; HR first
Row = dict[str, Any]


@dataclass(frozen=True)
class NamedClassifier:
    """A trained classifier on its device, under a name that no other has."""

    name: str
    labels: Labels
    classify: Classify
    about: Mapping[str, Any]  # weights, sha256, size, channels

    @cached_property
    def heads(self) -> list[Head]:
        return heads(self.labels)

    @property
    def columns(self) -> dict[str, int]:
        """Column -> k of its top-k accuracy."""
        if self.labels.kind != CLASS:
            return {f"accuracy_{self.name}": 1}
        return {f"top{k}_{self.name}": k for k in ((1, TOP) if len(self.labels.names) > TOP else (1,))}

    def arrays(self, images: Tensor, protocol: Protocol, batch: ImagePairs) -> np.ndarray:
        """The columns of `Answers` for a batch, (B, heads, columns); nan for images that are not finite."""
        logits = self.classify(as_stored(images.nan_to_num(), protocol).float())
        if not logits.isfinite().all():
            raise UserError(f"attributes: '{self.name}' returns logits that are not finite; its weights are damaged or diverged")
        columns = np.stack(answer_columns(logits, self.labels, batch), 2).astype(np.float64)
        columns[~images.isfinite().flatten(1).all(1).cpu().numpy()] = np.nan
        return columns


def classify_batch(
    classifiers: Sequence[NamedClassifier], method: int, images: Tensor, protocol: Protocol, batch: ImagePairs
) -> dict[str, np.ndarray]:
    """Every classifier's answers to the output of a method, given by its number."""
    return {_array(i, method): classifier.arrays(images, protocol, batch) for i, classifier in enumerate(classifiers)}


def _array(classifier: int, method: int) -> str:
    return f"answers/{classifier}/{method}"


def gather_answers(
    classifiers: Sequence[NamedClassifier], methods: Sequence[str], results: PartialResults, numbers: Sequence[int],
    images: list[str],
) -> tuple[dict[str, MethodAnswers], dict[str, str]]:  # fmt: skip
    """(classifier -> method -> answers to all images, column or method/column -> why it is missing). All ranks must call."""
    answers: dict[str, MethodAnswers] = {classifier.name: {} for classifier in classifiers}
    missing: dict[str, str] = {}
    for i, classifier in enumerate(classifiers):
        for method_number, method in enumerate([ORIGINAL, *methods]):
            parts = ranks.all_gather([results.array(number, _array(i, method_number)) for number in numbers])
            values = np.concatenate([rows for part in parts for rows in part])
            if np.isnan(values).any():
                missing |= {f"{method}/{column}": NOT_FINITE for column in classifier.columns}
            else:
                answers[classifier.name][method] = _answers(images, values)
        if accuracy(answers[classifier.name][ORIGINAL], 1) is None:
            missing |= dict.fromkeys(classifier.columns, NOT_KNOWN)
    return answers, missing


def _answers(images: list[str], values: np.ndarray) -> Answers:
    truth, predicted, confidence, loss, above = np.moveaxis(values, 2, 0)
    return Answers(images, truth.astype(np.int64), predicted.astype(np.int64), confidence, loss, above.astype(np.int64))


def correct(answers: Answers, k: int = 1) -> np.ndarray:
    """(n, heads): whether the truth is among the k most probable answers."""
    return answers.predicted == answers.truth if k == 1 else (answers.truth >= 0) & (answers.above < k)


def accuracy(answers: Answers, k: int) -> float | None:
    """The mean over heads of the top-k accuracy on images of known truth; None if a head has no such image."""
    known = answers.truth >= 0
    if not known.any(0).all():
        return None
    return float(np.mean((correct(answers, k) & known).sum(0) / known.sum(0)))


def rows_with_answers(
    rows: Iterable[Row], classifiers: Sequence[NamedClassifier], answers: Mapping[str, MethodAnswers]
) -> list[Row]:
    """Adds the rows of HR before the others, and every classifier's answers to each row.

    Only on the first rank, which writes the rows; the other ranks get them unchanged.
    """
    if not classifiers or not ranks.is_first():
        return list(rows)
    images = next(iter(answers.values()))[ORIGINAL].images
    numbers = {name: i for i, name in enumerate(images)}
    all_rows: list[Row] = [*({"image": image, "method": ORIGINAL} for image in images), *rows]
    return [row | _answers_of_row(row["method"], numbers[row["image"]], classifiers, answers) for row in all_rows]


def _answers_of_row(
    method: str, i: int, classifiers: Sequence[NamedClassifier], answers: Mapping[str, MethodAnswers]
) -> dict[str, Any]:
    columns: dict[str, float | None] = {}
    texts: dict[str, Any] = {}
    for classifier in classifiers:
        whole = answers[classifier.name].get(method)
        one = None if whole is None else Answers(whole.images[i : i + 1], *(column[i : i + 1] for column in whole[1:]))
        columns |= {column: None if one is None else accuracy(one, k) for column, k in classifier.columns.items()}
        texts[classifier.name] = None if one is None else _as_text(one, classifier)
    return {**columns, "answers": texts}


def _as_text(answers: Answers, classifier: NamedClassifier) -> dict[str, dict[str, Any]]:
    """One image: head -> truth, answer, confidence, and, of classes, the rank of the truth among the answers."""
    by_head = {}
    for number, head in enumerate(classifier.heads):
        truth, predicted, confidence, _, above = (column[0, number] for column in answers[1:])
        entry = {
            "truth": head.answers[truth] if truth >= 0 else None,
            "said": head.answers[predicted],
            "confidence": float(confidence),
        }
        rank = {"place": int(above) + 1 if truth >= 0 else None} if classifier.labels.kind == CLASS else {}
        by_head[head.name] = entry | rank
    return by_head
