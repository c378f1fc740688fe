"""What classifiers saw, as tables for report.md and report.html: what is lost, every head in the study's layout, model against
model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sr_dist.evaluation.classifiers.classifier_answers import ORIGINAL
from sr_dist.recipe.labels import CLASS

LARGEST = 20  # classes that have a row each
CONDITIONS = (
    "Classifiers see pictures of 8 bits, where the protocol has them. Lost and won: images about which a classifier is right "
    "only in HR, and only in what a method made of it. In brackets: 95 % intervals, of shares Wilson's, of paired differences "
    "Newcombe's. p: McNemar's test in its exact form (binomial, two-sided), not corrected for how many are compared."
)


class Cell(NamedTuple):
    text: str
    value: float | str | None = None  # by which rows are sorted; the text itself, where it is None


NOTHING = Cell("-", "")


@dataclass(frozen=True)
class Table:
    name: str
    title: str
    note: str
    columns: list[str]
    rows: list[list[Cell]]
    folded: bool = False  # only on the page, and closed there


def tables(found: Mapping[str, Any], ranking: Mapping[str, Any], shown: Sequence[str], pairs: Sequence[str]) -> Iterator[Table]:
    """`shown` are the methods whose drops stand side by side, the last one in order; `pairs` those that are compared."""
    heads = [(classifier, name, head) for classifier, tree in found.items() for name, head in tree["heads"].items()]
    if any(ranking[method] for method in shown):
        yield _lost(ranking, [method for method in shown if ranking[method]])
    for classifier, name, head in heads:
        yield _of_head(classifier, name, head)
        if name == CLASS and head["n"] and len(head["answers"]) <= LARGEST:
            yield _per_class(classifier, head)
            yield from (_confusion(classifier, method, head) for method in head["methods"])
    compared = [row for classifier, name, head in heads for row in _pairs(classifier, name, head, pairs)]
    if compared:
        note = "The second method's accuracy less the first's, in points."
        columns = ["classifier", "of", "second - first", "n", "difference", "right only first", "right only second", "p"]
        yield Table("pairs", "Model against model", note, columns, compared)


def _lost(ranking: Mapping[str, Any], shown: Sequence[str]) -> Table:
    """All heads, the one that the last method loses most of first."""
    drops = {method: {(entry["classifier"], entry["head"]): entry for entry in ranking[method]} for method in shown}
    rows = []
    for entry in ranking[shown[-1]]:
        own = [drops[method][entry["classifier"], entry["head"]] for method in shown]
        lost = [Cell(f"{_hundredths(drop['drop'], '+')} {_range(drop['low'], drop['high'])}", drop["drop"]) for drop in own]
        rows.append([Cell(entry["head"]), Cell(entry["classifier"]), _count(entry["n"]), _percent(entry["hr"]), *lost])
    note = (
        f"Accuracy on HR less accuracy on what a method made of it, in points, the largest of {shown[-1]} first: what is lost is "
        "what a network can be conditioned on."
    )
    return Table("ranking", "What is lost", note, ["of", "classifier", "n", "HR, %", *shown], rows)


def _of_head(classifier: str, name: str, head: Mapping[str, Any]) -> Table:
    rows = [
        [Cell(method), *(_yes_or_no if name != CLASS else _classes)(seen), *_beside_hr(seen)]
        for method, seen in head["methods"].items()
    ]
    first = ["TP", "TN", "FP", "FN", "accuracy, %"] if name != CLASS else ["accuracy, %"]
    inside = ["with, %", "without, %"] if name != CLASS else ["first 5, %"] if "top5" in head["methods"][ORIGINAL] else []
    columns = ["method", *first, *inside, "balanced, %", "agrees with HR, %", "lost", "won", "p"]
    return Table(f"{classifier}/{name}", f"{classifier}: {name}", _note(name, head), columns, rows)


def _note(name: str, head: Mapping[str, Any]) -> str:
    """n, of those with and without too, and what must be known of the classifier itself."""
    original = head["methods"][ORIGINAL]
    if not head["n"]:
        return f"n {head['images']}. No accuracy: {head['missing']}."
    inside = [f"{found['n']} {answer}" for answer, found in original["per_class"].items()]
    of = f" ({', '.join(inside)})" if name != CLASS else ""
    return f"n {head['n']}{of}." + (f" On HR {original['warning']}." if original["warning"] else "")


def _yes_or_no(seen: Mapping[str, Any]) -> list[Cell]:
    """The study's columns, then what is right of those with and without."""
    (tn, fp), (fn, tp) = seen["confusion"]
    counts = [_count(count) if seen["n"] else NOTHING for count in (tp, tn, fp, fn)]
    of = [_percent(seen["per_class"][answer]["accuracy"]) for answer in ("with", "without")]
    return [*counts, _percent(seen["accuracy"], seen["accuracy_interval"]), *of, _percent(seen["balanced_accuracy"])]


def _classes(seen: Mapping[str, Any]) -> list[Cell]:
    first_five = [_percent(seen["top5"])] if "top5" in seen else []
    return [_percent(seen["accuracy"], seen["accuracy_interval"]), *first_five, _percent(seen["balanced_accuracy"])]


def _beside_hr(seen: Mapping[str, Any]) -> list[Cell]:
    if not seen["agreement"]:
        return [NOTHING] * 4
    same = _percent(seen["agreement"]["share"], seen["agreement"]["interval"])
    return [same, *(_discordant(seen["against_hr"]) if seen["against_hr"] else [NOTHING] * 3)]


def _pairs(classifier: str, name: str, head: Mapping[str, Any], pairs: Sequence[str]) -> Iterator[list[Cell]]:
    for pair in pairs:
        if found := head["pairs"].get(pair):
            apart = Cell(f"{_hundredths(found['difference'], '+')} {_range(found['low'], found['high'])}", found["difference"])
            yield [Cell(classifier), Cell(name), Cell(pair), _count(found["n"]), apart, *_discordant(found)]


def _discordant(found: Mapping[str, Any]) -> list[Cell]:
    p = found["p"]
    text = "< 0.0001" if p < 0.0001 else f"{p:.4f}"
    return [_count(found["only_first"]), _count(found["only_second"]), Cell(text, p)]


def _per_class(classifier: str, head: Mapping[str, Any]) -> Table:
    methods = head["methods"]
    rows = [
        [Cell(answer), _count(methods[ORIGINAL]["per_class"][answer]["n"])]
        + [_percent(seen["per_class"][answer]["accuracy"]) for seen in methods.values()]
        for answer in head["answers"]
    ]
    title = f"{classifier}: accuracy per class, %"
    return Table(f"{classifier}/per class", title, "", ["class", "n", *methods], rows)


def _confusion(classifier: str, method: str, head: Mapping[str, Any]) -> Table:
    table = zip(head["answers"], head["methods"][method]["confusion"], strict=True)
    rows = [[Cell(answer), *map(_count, row)] for answer, row in table]
    title = f"{classifier}: what is said of {method}, a row per truth"
    return Table(f"{classifier}/confusion/{method}", title, "", ["truth", *head["answers"]], rows, folded=True)


def _count(count: int) -> Cell:
    return Cell(str(count), count)


def _percent(share: float | None, interval: Sequence[float] | None = None) -> Cell:
    if share is None:
        return NOTHING
    return Cell(_hundredths(share) + (f" {_range(*interval)}" if interval else ""), share)


def _range(low: float, high: float) -> str:
    return f"[{_hundredths(low)}, {_hundredths(high)}]"


def _hundredths(share: float, sign: str = "") -> str:
    return f"{round(100 * share, 2) + 0.0:{sign}.2f}"  # + 0.0 makes -0.0 positive
