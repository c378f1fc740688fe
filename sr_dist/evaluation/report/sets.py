"""One report of several sets of images: their means, and a part for each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sr_dist.core.formats import stamp
from sr_dist.evaluation.intervals import mean_of_sets
from sr_dist.evaluation.report.markdown import markdown, table
from sr_dist.evaluation.report.page import environment, main_column, view
from sr_dist.evaluation.report.report import FORMAT, Report, best_of

Tree = Mapping[str, Any]


@dataclass(frozen=True)
class SetsReport:
    reports: dict[str, Report]  # by the name of the set; all have the same methods

    @property
    def first(self) -> Report:
        return next(iter(self.reports.values()))

    @property
    def order(self) -> list[str]:
        return self.first.order

    @property
    def better(self) -> dict[str, str]:
        return self.first.scores.better

    @cached_property
    def columns(self) -> list[str]:
        """The columns that all sets have."""
        return [column for column in self.first.columns if all(column in report.columns for report in self.reports.values())]

    @cached_property
    def image_columns(self) -> list[str]:
        return [column for column in self.first.image_columns if column in self.columns]

    @cached_property
    def methods(self) -> dict[str, dict[str, float | None]]:
        """Method -> column -> mean over sets; None where a set has no value."""
        return {method: {column: self._mean(method, column) for column in self.columns} for method in self.order}

    def _mean(self, method: str, column: str) -> float | None:
        values = [report.methods[method][column] for report in self.reports.values()]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if len(known) == len(values) else None

    @property
    def best(self) -> dict[str, float | None]:
        return best_of(self.methods, self.columns, self.better)

    @cached_property
    def differences(self) -> dict[str, Any]:
        reports = list(self.reports.values())
        return {
            pair: {
                column: mean_of_sets([report.differences[pair][column] for report in reports]) for column in self.image_columns
            }
            for pair in self.first.differences
        }

    @property
    def pairs(self) -> dict[str, Any]:
        """Those against one method."""
        return {pair: self.differences[pair] for pair in self.first.first_pairs}

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [{"set": name, **row} for name, report in self.reports.items() for row in report.rows]

    def tree(self) -> dict[str, Any]:
        """The keys of a report of one set, with means, and those reports under `sets`."""
        trees = {name: report.tree() for name, report in self.reports.items()}
        first = next(iter(trees.values()))
        return {
            **stamp(FORMAT),
            **joined(trees),
            "metrics": first["metrics"],
            "methods": self.methods,
            "distances": {},
            "differences": self.differences,
            "attributes": {},
            "ranking": {},
            "notes": [f"{name}: {note}" for name, report in self.reports.items() for note in report.notes],
            "missing": {f"{name}/{key}": reason for name, tree in trees.items() for key, reason in tree["missing"].items()},
            "images": "images.jsonl",
            "tool": first["tool"],
            **({"against": self.first.against} if self.first.against else {}),
            "sets": trees,
        }


def joined(trees: Mapping[str, Tree]) -> dict[str, Any]:
    """What names the inputs of several sets, from reports or plans of each."""
    first = next(iter(trees.values()))
    return {
        "protocol": {key: _without_n(value) for key, value in first["protocol"].items()},
        "data": ",".join(f"{name}={tree['data']}" for name, tree in trees.items()),
        "portion": first["portion"],
        "n": sum(tree["n"] for tree in trees.values()),
        "inputs": {
            key: value if key == "degradation" else json.dumps([tree["inputs"][key] for tree in trees.values()])
            for key, value in first["inputs"].items()
        },
        "sources": {
            method: {**about, "sha256": _one(tree["sources"][method]["sha256"] for tree in trees.values())}
            for method, about in first["sources"].items()
        },
    }


def _without_n(condition: Any) -> Any:
    """A condition of the numbers, without how many images an extractor saw, which is each set's own."""
    return {key: value for key, value in condition.items() if key != "n"} if isinstance(condition, dict) else condition


def _one(digests: Iterable[str]) -> str:
    """The sha256 of weights, which is that of every set; a digest of those of pictures."""
    several = list(digests)
    return several[0] if len(set(several)) == 1 else _digest(several)


def _digest(values: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def plan(trees: Mapping[str, Tree]) -> dict[str, Any]:
    """What the report will have, from what those of each set will have."""
    first = next(iter(trees.values()))
    columns = [column for column in first["columns"] if all(column in tree["columns"] for tree in trees.values())]
    return {**joined(trees), "methods": first["methods"], "columns": columns, "attributes": {}}


def markdown_of_sets(whole: SetsReport) -> str:
    first = whole.first
    rows = [[method, *(first.cell(column, values[column], whole.best[column]) for column in whole.columns)]
            for method, values in whole.methods.items()]  # fmt: skip
    blocks = [f"## Means over {len(whole.reports)} sets: {', '.join(whole.reports)}", table(["method", *whole.columns], rows)]
    if whole.pairs and whole.image_columns:
        cells = [[pair, *(first.interval(column, values[column]) for column in whole.image_columns)]
                 for pair, values in whole.pairs.items()]  # fmt: skip
        blocks += [
            table(["difference", *whole.image_columns], cells),
            "Means over sets, each counting alike, with 95 % intervals.",
        ]
    blocks += [f"## {name}\n\n{markdown(report)}" for name, report in whole.reports.items()]
    return "\n\n".join(blocks)


def page_of_sets(whole: SetsReport, examples: Mapping[str, list[dict[str, Any]]]) -> str:
    views = [{"name": name, **view(report, examples[name], f"{name}-")} for name, report in whole.reports.items()]
    template = environment(whole.first).get_template("sets.html")
    title, shared = whole.order[-1], views[0]["conditions_of_classifiers"]
    return template.render(title=title, whole=whole, views=views, main=main_column(whole.first), conditions_of_classifiers=shared)
