"""How much of what classifiers see in HR is still visible in restored images: per classifier, head and method, paired by image.

HR is the ceiling: accuracy on restored images rarely exceeds accuracy on HR, and a biased classifier shows its bias there. The
ranking follows the class-conditional study: run without class knowledge, see what is lost, and condition on that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from sr_dist.evaluation.classifiers.answers import Answers, Head, head_statistics, heads
from sr_dist.evaluation.classifiers.classifier_answers import NOT_KNOWN, ORIGINAL, MethodAnswers, NamedClassifier, correct
from sr_dist.evaluation.intervals import accuracy_difference, wilson

Tree = dict[str, Any]
LARGEST = 100  # the most answers of a head whose confusion is in report.json; images.jsonl has the answers of larger heads


def attribute_report(classifiers: Sequence[NamedClassifier], answers: Mapping[str, MethodAnswers]) -> dict[str, Tree]:
    """All statistics, by classifier."""
    return {classifier.name: _of_classifier(classifier, answers[classifier.name]) for classifier in classifiers}


def _of_classifier(classifier: NamedClassifier, answers: MethodAnswers) -> Tree:
    statistics = {method: head_statistics(of_method, classifier.labels) for method, of_method in answers.items()}
    return {
        **classifier.about,
        "labels": {"kind": classifier.labels.kind, "names": list(classifier.labels.names)},
        "heads": {
            head.name: _of_head(head, number, {method: by_head[head.name] for method, by_head in statistics.items()}, answers)
            for number, head in enumerate(heads(classifier.labels))
        },
    }


def _of_head(head: Head, number: int, statistics: Mapping[str, Tree], answers: MethodAnswers) -> Tree:
    known = answers[ORIGINAL].truth[:, number] >= 0
    is_correct = {method: correct(of_method)[known, number] for method, of_method in answers.items()}
    methods = {
        method: {
            **statistics[method],
            "confusion": statistics[method]["confusion"] if len(head.answers) <= LARGEST else None,
            "agreement": agreement(of_method, answers[ORIGINAL], number) if method != ORIGINAL else None,
            "against_hr": accuracy_difference(is_correct[ORIGINAL], is_correct[method]) if method != ORIGINAL else None,
        }
        for method, of_method in answers.items()
    }
    restored = [method for method in answers if method != ORIGINAL]
    return {
        "answers": list(head.answers),
        "images": len(known),
        "n": int(known.sum()),  # images of known truth
        "missing": "" if known.any() else NOT_KNOWN,
        "methods": methods,
        "pairs": {f"{b} - {a}": accuracy_difference(is_correct[a], is_correct[b]) for a, b in combinations(restored, 2)},
    }


def agreement(answers: Answers, original: Answers, number: int) -> Tree:
    """How often the answer is that to HR, correct or not; over all images, because it needs no truth."""
    same, n = int((answers.predicted[:, number] == original.predicted[:, number]).sum()), len(answers.images)
    return {"n": n, "share": same / n, "interval": list(wilson(same, n))}


def ranking(report: Mapping[str, Tree], methods: Sequence[str]) -> dict[str, list[Tree]]:
    """Method -> all heads, sorted by the drop of accuracy from HR, largest first."""
    return {
        method: sorted(
            (
                _drop(classifier, name, head["methods"][ORIGINAL], head["methods"][method])
                for classifier, tree in report.items() for name, head in tree["heads"].items()
                if method in head["methods"] and head["n"]
            ),
            key=lambda entry: (-entry["drop"], entry["classifier"], entry["head"]),
        )
        for method in methods
    }  # fmt: skip


def _drop(classifier: str, head: str, original: Tree, restored: Tree) -> Tree:
    against = restored["against_hr"]
    accuracies = {"hr": original["accuracy"], "sr": restored["accuracy"]}
    drop = {"drop": 0.0 - against["difference"], "low": -against["high"], "high": -against["low"], "p": against["p"]}
    return {"classifier": classifier, "head": head, "n": against["n"], **accuracies, **drop}
