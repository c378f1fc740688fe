"""The classifiers' answers as tables for report.md and report.html: lost accuracy, every head, comparisons of methods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sr_dist.evaluation.classifiers.classifier_answers import ORIGINAL
from sr_dist.recipe.labels import CLASS

LARGEST = 20  # the most classes that have a row each
CONDITIONS = (
    "Classifiers see 8-bit images, if the protocol has them. Lost: images on which a classifier is correct only in HR. Won: "
    "images on which it is correct only in the method's output. In brackets: 95 % intervals, Wilson's of shares, Newcombe's of "
    "paired differences. p: McNemar's exact test (binomial, two-sided), not corrected for multiple comparisons."
)
Tree = Mapping[str, Any]


class Cell(NamedTuple):
    text: str
    value: float | str | None = None  # the key by which rows are sorted; None: the text


EMPTY = Cell("-", "")


@dataclass(frozen=True)
class Table:
    name: str
    title: str
    note: str
    columns: list[str]
    rows: list[list[Cell]]
    folded: bool = False  # only on the page, where it is closed at first


def tables(attributes: Tree, ranking: Tree, shown: Sequence[str], pairs: Sequence[str]) -> Iterator[Table]:
    """`shown`: the methods whose drops of accuracy are shown, sorted by the last one. `pairs`: the methods to compare."""
    heads = [(classifier, name, head) for classifier, tree in attributes.items() for name, head in tree["heads"].items()]
    if any(ranking[method] for method in shown):
        yield _lost(ranking, [method for method in shown if ranking[method]])
    for classifier, name, head in heads:
        yield _of_head(classifier, name, head)
        if name == CLASS and head["n"] and len(head["answers"]) <= LARGEST:
            yield _per_class(classifier, head)
            yield from (_confusion(classifier, method, head) for method in head["methods"])
    compared = [row for classifier, name, head in heads for row in _pairs(classifier, name, head, pairs)]
    if compared:
        note = "The second method's accuracy minus the first's, in percentage points."
        columns = ["classifier", "of", "second - first", "n", "difference", "right only first", "right only second", "p"]
        yield Table("pairs", "Comparison of methods", note, columns, compared)


def _lost(ranking: Tree, shown: Sequence[str]) -> Table:
    """All heads, sorted by the last method's drop, largest first."""
    drops = {method: {(entry["classifier"], entry["head"]): entry for entry in ranking[method]} for method in shown}
    rows = []
    for entry in ranking[shown[-1]]:
        own = [drops[method][entry["classifier"], entry["head"]] for method in shown]
        lost = [Cell(f"{_hundredths(drop['drop'], '+')} {_range(drop['low'], drop['high'])}", drop["drop"]) for drop in own]
        rows.append([Cell(entry["head"]), Cell(entry["classifier"]), _count(entry["n"]), _percent(entry["hr"]), *lost])
    note = (
        f"Accuracy on HR minus accuracy on the method's output, in percentage points, sorted by {shown[-1]}. A network can be "
        "conditioned on what is lost."
    )
    return Table("ranking", "Lost accuracy", note, ["of", "classifier", "n", "HR, %", *shown], rows)


def _of_head(classifier: str, name: str, head: Tree) -> Table:
    rows = [
        [Cell(method), *(_attribute_cells if name != CLASS else _class_cells)(statistics), *_against_hr(statistics)]
        for method, statistics in head["methods"].items()
    ]
    first = ["TP", "TN", "FP", "FN", "accuracy, %"] if name != CLASS else ["accuracy, %"]
    inside = ["with, %", "without, %"] if name != CLASS else ["first 5, %"] if "top5" in head["methods"][ORIGINAL] else []
    columns = ["method", *first, *inside, "balanced, %", "agrees with HR, %", "lost", "won", "p"]
    return Table(f"{classifier}/{name}", f"{classifier}: {name}", _note(name, head), columns, rows)


def _note(name: str, head: Tree) -> str:
    """The counts, and the classifier's bias on HR."""
    original = head["methods"][ORIGINAL]
    if not head["n"]:
        return f"n {head['images']}. No accuracy: {head['missing']}."
    counts = [f"{of_class['n']} {answer}" for answer, of_class in original["per_class"].items()]
    inside = f" ({', '.join(counts)})" if name != CLASS else ""
    return f"n {head['n']}{inside}." + (f" On HR, {original['warning']}." if original["warning"] else "")


def _attribute_cells(statistics: Tree) -> list[Cell]:
    """The study's columns, then the accuracies on images with and without the attribute."""
    (tn, fp), (fn, tp) = statistics["confusion"]
    counts = [_count(count) if statistics["n"] else EMPTY for count in (tp, tn, fp, fn)]
    inside = [_percent(statistics["per_class"][answer]["accuracy"]) for answer in ("with", "without")]
    accuracy = _percent(statistics["accuracy"], statistics["accuracy_interval"])
    return [*counts, accuracy, *inside, _percent(statistics["balanced_accuracy"])]


def _class_cells(statistics: Tree) -> list[Cell]:
    first_five = [_percent(statistics["top5"])] if "top5" in statistics else []
    accuracy = _percent(statistics["accuracy"], statistics["accuracy_interval"])
    return [accuracy, *first_five, _percent(statistics["balanced_accuracy"])]


def _against_hr(statistics: Tree) -> list[Cell]:
    if not statistics["agreement"]:
        return [EMPTY] * 4
    same = _percent(statistics["agreement"]["share"], statistics["agreement"]["interval"])
    return [same, *(_discordant(statistics["against_hr"]) if statistics["against_hr"] else [EMPTY] * 3)]


def _pairs(classifier: str, name: str, head: Tree, pairs: Sequence[str]) -> Iterator[list[Cell]]:
    for pair in pairs:
        if difference := head["pairs"].get(pair):
            text = f"{_hundredths(difference['difference'], '+')} {_range(difference['low'], difference['high'])}"
            cell = Cell(text, difference["difference"])
            yield [Cell(classifier), Cell(name), Cell(pair), _count(difference["n"]), cell, *_discordant(difference)]


def _discordant(difference: Tree) -> list[Cell]:
    p = difference["p"]
    text = "< 0.0001" if p < 0.0001 else f"{p:.4f}"
    return [_count(difference["only_first"]), _count(difference["only_second"]), Cell(text, p)]


def _per_class(classifier: str, head: Tree) -> Table:
    methods = head["methods"]
    rows = [
        [Cell(answer), _count(methods[ORIGINAL]["per_class"][answer]["n"])]
        + [_percent(statistics["per_class"][answer]["accuracy"]) for statistics in methods.values()]
        for answer in head["answers"]
    ]
    title = f"{classifier}: accuracy per class, %"
    return Table(f"{classifier}/per class", title, "", ["class", "n", *methods], rows)


def _confusion(classifier: str, method: str, head: Tree) -> Table:
    table = zip(head["answers"], head["methods"][method]["confusion"], strict=True)
    rows = [[Cell(answer), *map(_count, row)] for answer, row in table]
    title = f"{classifier}: confusion on {method}, a row per true class"
    return Table(f"{classifier}/confusion/{method}", title, "", ["truth", *head["answers"]], rows, folded=True)


def _count(count: int) -> Cell:
    return Cell(str(count), count)


def _percent(share: float | None, interval: Sequence[float] | None = None) -> Cell:
    if share is None:
        return EMPTY
    return Cell(_hundredths(share) + (f" {_range(*interval)}" if interval else ""), share)


def _range(low: float, high: float) -> str:
    return f"[{_hundredths(low)}, {_hundredths(high)}]"


def _hundredths(share: float, sign: str = "") -> str:
    return f"{round(100 * share, 2) + 0.0:{sign}.2f}"  # + 0.0 makes -0.0 positive
