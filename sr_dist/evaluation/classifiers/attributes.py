"""How much of what classifiers see in HR is still seen in restored images: per classifier, head and method, paired by image.

HR is the ceiling: a method can hardly be told apart better than what it restores, and a biased classifier says so there first.
The ranking is the class-conditional study's advice: run without class knowledge, see what is lost, and condition on that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from sr_dist.evaluation.classifiers.answers import Answers, Head, heads, judged
from sr_dist.evaluation.classifiers.classifier_answers import NOT_KNOWN, ORIGINAL, Judge, Opinions, right
from sr_dist.evaluation.intervals import paired, wilson

Tree = dict[str, Any]
LARGEST = 100  # answers whose confusion is written down; of more, images.jsonl tells


def judgements(judges: Sequence[Judge], opinions: Mapping[str, Opinions]) -> dict[str, Tree]:
    """Everything, by classifier."""
    return {judge.name: _of_judge(judge, opinions[judge.name]) for judge in judges}


def _of_judge(judge: Judge, opinions: Opinions) -> Tree:
    found = {method: judged(answers, judge.labels) for method, answers in opinions.items()}
    return {
        **judge.about,
        "labels": {"kind": judge.labels.kind, "names": list(judge.labels.names)},
        "heads": {
            head.name: _of_head(head, number, {method: seen[head.name] for method, seen in found.items()}, opinions)
            for number, head in enumerate(heads(judge.labels))
        },
    }


def _of_head(head: Head, number: int, found: Mapping[str, Tree], opinions: Opinions) -> Tree:
    known = opinions[ORIGINAL].truth[:, number] >= 0
    who = {method: right(answers)[known, number] for method, answers in opinions.items()}
    methods = {
        method: {
            **found[method],
            "confusion": found[method]["confusion"] if len(head.answers) <= LARGEST else None,
            "agreement": agreement(answers, opinions[ORIGINAL], number) if method != ORIGINAL else None,
            "against_hr": paired(who[ORIGINAL], who[method]) if method != ORIGINAL else None,
        }
        for method, answers in opinions.items()
    }
    restored = [method for method in opinions if method != ORIGINAL]
    return {
        "answers": list(head.answers),
        "images": len(known),
        "n": int(known.sum()),  # images of which it is known
        "missing": "" if known.any() else NOT_KNOWN,
        "methods": methods,
        "pairs": {f"{b} - {a}": paired(who[a], who[b]) for a, b in combinations(restored, 2)},
    }


def agreement(answers: Answers, original: Answers, number: int) -> Tree:
    """How often the same is said as of HR, be it true or not; of all images, for no truth is needed."""
    same, n = int((answers.said[:, number] == original.said[:, number]).sum()), len(answers.images)
    return {"n": n, "share": same / n, "interval": list(wilson(same, n))}


def ranking(found: Mapping[str, Tree], methods: Sequence[str]) -> dict[str, list[Tree]]:
    """By method: all heads, the greatest drop of accuracy from HR first."""
    return {
        method: sorted(
            (
                _drop(classifier, name, head["methods"][ORIGINAL], head["methods"][method])
                for classifier, tree in found.items() for name, head in tree["heads"].items()
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
