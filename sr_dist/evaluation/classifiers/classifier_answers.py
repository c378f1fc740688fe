"""What finished classifiers say of HR, the ceiling, and of what every method made of it: asked in the one pass over the images.

They see pictures as the protocol keeps them (8 bits). The answers about a batch are arrays among its parts; together
they are `Answers` in the order of the images, so all that is worked out of them is the same on any number of ranks.
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
from sr_dist.data.images import Scored
from sr_dist.evaluation.classifiers.answers import FIRST, Answers, Classify, Head, answered, heads
from sr_dist.evaluation.partial_results import Parts
from sr_dist.evaluation.protocol import Protocol, kept
from sr_dist.recipe.labels import CLASS, Labels

ORIGINAL = "HR"  # as a method's name
NOT_FINITE = "what the method made of an image is not finite"
NOT_KNOWN = "the images do not say what is true"
Opinions = dict[str, Answers]  # of one classifier, by method; HR first


@dataclass(frozen=True)
class Judge:
    """A finished classifier, on its device."""

    name: str
    labels: Labels
    classify: Classify
    about: Mapping[str, Any]  # weights, sha256, size, channels

    @cached_property
    def heads(self) -> list[Head]:
        return heads(self.labels)

    @property
    def columns(self) -> dict[str, int]:
        """Column -> among how many answers the truth must be."""
        if self.labels.kind != CLASS:
            return {f"accuracy_{self.name}": 1}
        return {f"top{first}_{self.name}": first for first in ((1, FIRST) if len(self.labels.names) > FIRST else (1,))}

    def arrays(self, images: Tensor, protocol: Protocol, batch: Scored) -> np.ndarray:
        """The columns of answers about a batch, (B, heads, columns); nan for images that are not finite."""
        logits = self.classify(kept(images.nan_to_num(), protocol).float())
        if not logits.isfinite().all():
            raise UserError(f"attributes: '{self.name}' answers with what is no number; its weights are damaged or diverged")
        found = np.stack(answered(logits, self.labels, batch), 2).astype(np.float64)
        found[~images.isfinite().flatten(1).all(1).cpu().numpy()] = np.nan
        return found


def ask_all(judges: Sequence[Judge], method: int, images: Tensor, protocol: Protocol, batch: Scored) -> dict[str, np.ndarray]:
    """What every classifier says of a batch as a method, given by its number, shows it."""
    return {_place(number, method): judge.arrays(images, protocol, batch) for number, judge in enumerate(judges)}


def _place(judge: int, method: int) -> str:
    return f"answers/{judge}/{method}"


def gathered(
    judges: Sequence[Judge], methods: Sequence[str], parts: Parts, mine: Sequence[int], images: list[str]
) -> tuple[dict[str, Opinions], dict[str, str]]:
    """(classifier -> method -> answers about all images, column or method/column -> why it has no value). All ranks must call."""
    found: dict[str, Opinions] = {judge.name: {} for judge in judges}
    missing: dict[str, str] = {}
    for number, judge in enumerate(judges):
        for place, method in enumerate([ORIGINAL, *methods]):
            everybodys = ranks.gather([parts.array(batch, _place(number, place)) for batch in mine])
            values = np.concatenate([rows for of_rank in everybodys for rows in of_rank])
            if np.isnan(values).any():
                missing |= {f"{method}/{column}": NOT_FINITE for column in judge.columns}
            else:
                found[judge.name][method] = _answers(images, values)
        if share(found[judge.name][ORIGINAL], 1) is None:
            missing |= dict.fromkeys(judge.columns, NOT_KNOWN)
    return found, missing


def _answers(images: list[str], values: np.ndarray) -> Answers:
    truth, said, confidence, loss, above = np.moveaxis(values, 2, 0)
    return Answers(images, truth.astype(np.int64), said.astype(np.int64), confidence, loss, above.astype(np.int64))


def right(answers: Answers, first: int = 1) -> np.ndarray:
    """(n, heads): whether the truth is what was said, or among the first so many answers."""
    return answers.said == answers.truth if first == 1 else (answers.truth >= 0) & (answers.above < first)


def share(answers: Answers, first: int) -> float | None:
    """The mean over heads of the part that is right, of the images of which the truth is known; None where a head has none."""
    known = answers.truth >= 0
    if not known.any(0).all():
        return None
    return float(np.mean((right(answers, first) & known).sum(0) / known.sum(0)))


def with_opinions(
    rows: Iterable[dict[str, Any]], judges: Sequence[Judge], opinions: Mapping[str, Opinions]
) -> list[dict[str, Any]]:
    """Rows of HR, then those of the methods, with what every classifier said of the image, how surely, and whether it is true;
    on the first rank, which writes them."""
    if not judges or not ranks.is_first():
        return list(rows)
    images = next(iter(opinions.values()))[ORIGINAL].images
    places = {name: i for i, name in enumerate(images)}
    everything = [*({"image": image, "method": ORIGINAL} for image in images), *rows]
    return [row | _of_row(row["method"], places[row["image"]], judges, opinions) for row in everything]


def _of_row(method: str, i: int, judges: Sequence[Judge], opinions: Mapping[str, Opinions]) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    said: dict[str, Any] = {}
    for judge in judges:
        answers = opinions[judge.name].get(method)
        one = None if answers is None else Answers(answers.images[i : i + 1], *(column[i : i + 1] for column in answers[1:]))
        columns |= {column: None if one is None else share(one, first) for column, first in judge.columns.items()}
        said[judge.name] = None if one is None else _in_words(one, judge)
    return {**columns, "answers": said}


def _in_words(answers: Answers, judge: Judge) -> dict[str, dict[str, Any]]:
    """Of one image: what is true, what was said, how surely, and, of classes, the place of the truth among the answers."""
    found = {}
    for number, head in enumerate(judge.heads):
        truth, said, confidence, _, above = (column[0, number] for column in answers[1:])
        words = {
            "truth": head.answers[truth] if truth >= 0 else None,
            "said": head.answers[said],
            "confidence": float(confidence),
        }
        place = {"place": int(above) + 1 if truth >= 0 else None} if judge.labels.kind == CLASS else {}
        found[head.name] = words | place
    return found
