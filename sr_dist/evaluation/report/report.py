"""Scores -> report.json for programs, report.md for papers, report.html for people, images.jsonl with every row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib import metadata
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol

from sr_dist.core.formats import stamp
from sr_dist.core.outputs import write_output
from sr_dist.core.printable import plural
from sr_dist.data.select import Portion
from sr_dist.evaluation import protocol as protocols
from sr_dist.evaluation.classifiers.attributes import attribute_report, ranking
from sr_dist.evaluation.distances.features import Estimate
from sr_dist.evaluation.intervals import differences, oriented
from sr_dist.evaluation.metric_set import DEFAULT_DIGITS, Metrics
from sr_dist.evaluation.report.attribute_tables import Table, tables
from sr_dist.evaluation.scoring import Scores

FORMAT = 1  # of report.json; 0.1.0 wrote no number
REPORT = "report.json"
BASELINE = "bicubic"
PICTURES = "report_pictures"  # the folder of examples in full size, where the page has smaller ones
FILES = ("images.jsonl", "report.md", "report.html", REPORT)  # in the order in which they are written
LIBRARIES = ("torch", "lpips", "clean-fid", "numpy", "scipy", "pillow")


@dataclass(frozen=True)
class Report:
    protocol: protocols.Protocol
    data: str
    names: list[str]  # of the images
    order: list[str]  # of the methods
    scores: Scores
    sources: dict[str, dict[str, Any]]  # of trained methods: weights, sha256, step, parameters
    metrics: Metrics
    notes: list[str]  # how images were changed before they were scored
    portion: Portion | None = None  # of the data
    inputs: Mapping[str, Any] = field(default_factory=dict)  # digest of the images, degradation
    against: str | None = None  # the method that is subtracted from every other
    has_hr: bool = True

    @cached_property
    def methods(self) -> dict[str, dict[str, float | None]]:
        """Method -> column -> value."""
        return {method: self.scores.means(method) for method in self.order}

    @cached_property
    def columns(self) -> list[str]:
        """The columns that can be computed."""
        return [column for column in self.scores.better if column not in self.scores.missing]

    @cached_property
    def image_columns(self) -> list[str]:
        """The columns that have a value per image."""
        of_sets = {*self.scores.distances, *self.scores.accuracies}
        return [column for column in self.columns if column not in of_sets]

    @cached_property
    def attributes(self) -> dict[str, Any]:
        return attribute_report(self.metrics.classifiers, self.scores.answers)

    @cached_property
    def ranking(self) -> dict[str, Any]:
        return ranking(self.attributes, self.order)

    @cached_property
    def differences(self) -> dict[str, Any]:
        return differences(self.scores.rows, self.order, self.image_columns, self.against)

    @property
    def reference(self) -> str:
        """The method with which the others are compared first."""
        return self.against or BASELINE

    @property
    def pairs(self) -> dict[str, Any]:
        """The differences to show: first those against one method, then those with another trained method, or all if there is
        none."""
        shown = [
            (a, b) for a, b in oriented(self.order, self.against)
            if a == self.against or not self.sources or {a, b} & self.sources.keys()
        ]  # fmt: skip
        shown.sort(key=lambda pair: pair[0] != self.reference)
        return {f"{b} - {a}": self.differences[f"{b} - {a}"] for a, b in shown}

    @property
    def first_pairs(self) -> dict[str, Any]:
        """Those against one method; all where none is against it."""
        ending = f" - {self.reference}"
        return {pair: columns for pair, columns in self.pairs.items() if pair.endswith(ending)} or self.pairs

    @property
    def other_pairs(self) -> dict[str, Any]:
        return {pair: columns for pair, columns in self.pairs.items() if pair not in self.first_pairs}

    @cached_property
    def tables(self) -> list[Table]:
        """The classifiers' answers."""
        shown = [method for method in self.order if method in self.sources] or self.order
        pairs = [f"{b} - {a}" for a, b in combinations(self.order, 2) if not self.sources or {a, b} & self.sources.keys()]
        return list(tables(self.attributes, self.ranking, shown, pairs))

    @property
    def best(self) -> dict[str, float | None]:
        return best_of(self.methods, self.columns, self.scores.better)

    @property
    def missing(self) -> dict[str, str]:
        reason = "an image is too small for the border or the window, or the method's output for it is not finite"
        single = {
            f"{method}/{column}": reason
            for method, values in self.methods.items() for column, value in values.items()
            if value is None and column not in self.scores.missing
        }  # fmt: skip
        return {**single, **self.scores.missing}

    @property
    def not_computed(self) -> dict[str, list[str]]:
        """Reason -> the columns, or METHOD/COLUMN, that are missing because of it."""
        missing = self.missing
        return {reason: [key for key in missing if missing[key] == reason] for reason in missing.values()}

    @cached_property
    def image_conditions(self) -> dict[str, dict[str, Any]]:
        """What metrics of images depend on besides the protocol, such as LPIPS's weights."""
        return self.metrics.conditions(self.columns)

    @cached_property
    def set_conditions(self) -> dict[str, dict[str, Any]]:
        """The extractor whose features the distances compare."""
        if not self.metrics.extractor:
            return {}
        return {self.metrics.extractor_key: {**self.metrics.extractor.describe(), "n": len(self.names), "input": "8-bit images"}}

    def protocol_tree(self) -> dict[str, Any]:
        return {**self.protocol.describe(), **self.image_conditions, **self.set_conditions}

    def tree(self) -> dict[str, Any]:
        return {
            **stamp(FORMAT),
            "protocol": self.protocol_tree(),
            "data": self.data,
            "portion": self.portion.describe() if self.portion else None,
            "n": len(self.names),
            "inputs": self.inputs,
            "notes": self.notes,
            "metrics": self.metrics.facts(),
            "methods": self.methods,
            "distances": {column: asdict(distance) for column, distance in self.scores.distances.items()},
            "differences": self.differences,
            "attributes": self.attributes,
            "ranking": self.ranking,
            "missing": self.missing,
            "sources": self.sources,
            "images": "images.jsonl",
            "tool": {name: metadata.version(name) for name in LIBRARIES},
            **({"against": self.against} if self.against else {}),
        }

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row per image and method."""
        return self.scores.rows

    def number(self, column: str, value: float | None, sign: str = "") -> str:
        """A value with the decimals of its column."""
        return number(value, self.metrics.digits.get(column, DEFAULT_DIGITS), sign)

    def cell(self, column: str, value: float | None, best: float | None) -> str:
        """A value in Markdown, bold if it is the best."""
        text = self.number(column, value)
        return f"**{text}**" if value is not None and value == best else text

    def interval(self, column: str, difference: Mapping[str, float] | None) -> str:
        if difference is None:
            return "-"
        mean, low, high = (self.number(column, difference[key], "+") for key in ("mean", "low", "high"))
        return f"{mean} [{low}, {high}]"

    def estimate(self, column: str, estimate: Estimate | None) -> str:
        if estimate is None or estimate.low is None:
            return self.number(column, estimate.value if estimate else None)
        value, low, high = (self.number(column, bound) for bound in (estimate.value, estimate.low, estimate.high))
        return f"{value} [{low}, {high}]"

    def conditions(self) -> str:
        """The conditions of the numbers in one paragraph."""
        rules = self.protocol
        rounding = "8-bit images" if rules.eight_bit else "floats, not rounded"
        luma = "rounded BT.601 Y" if rules.rounded_luma else "unrounded BT.601 Y"
        portion = f" ({self.portion})" if self.portion else ""
        versions = "".join(f" {name.upper()} {about['version']}." for name, about in self.image_conditions.items()
                           if "version" in about)  # fmt: skip
        extractors = "".join(
            f" {name}: n {about['n']}, extractor {', '.join(filter(None, (about['extractor'], about.get('network'))))} "
            f"(sha256 {about['weights_sha256'][:8]}), {about['resize']}."
            for name, about in self.set_conditions.items()
        )
        return (
            f"x{rules.scale}, {plural(len(self.names), 'image')} of {self.data}{portion}; "
            + (f"protocol {rules.name}: {luma} and RGB, border {rules.border}, " if self.has_hr else "")
            + f"{rounding}, mean of per-image values.{versions}{extractors}"
            + "".join(f" {note[0].upper()}{note[1:]}." for note in self.notes)
        )


def best_of(
    methods: Mapping[str, Mapping[str, float | None]], columns: Sequence[str], better: Mapping[str, str]
) -> dict[str, float | None]:
    """Column -> the best value of all methods."""
    values = {column: [value for row in methods.values() if (value := row[column]) is not None] for column in columns}
    return {column: (max if better[column] == "higher" else min)(some, default=None) for column, some in values.items()}


def number(value: float | None, digits: int, sign: str = "") -> str:
    """A value with so many decimals, "-" for None."""
    if value is None:
        return "-"
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"  # + 0.0 makes -0.0 positive


def described(source: Mapping[str, Any]) -> str:
    """Where a method comes from, in one line."""
    if "pictures" in source:
        return f"{plural(source['files'], 'picture')} in {source['pictures']}, sha256 {source['sha256'][:16]}"
    step = "" if source["step"] is None else f"step {source['step']}, "
    return f"{source['weights']}, {step}{source['parameters']:,} parameters, sha256 {source['sha256'][:16]}"


class Written(Protocol):
    """What a report's files are made of."""

    @property
    def rows(self) -> list[dict[str, Any]]: ...

    def tree(self) -> dict[str, Any]: ...


def write(out: Path, report: Written, markdown: str, page: str) -> None:
    """Writes the four files. report.json is the last: it marks a complete report."""
    texts = (
        "".join(json.dumps(row) + "\n" for row in report.rows), markdown + "\n", page,
        json.dumps(report.tree(), indent=1, allow_nan=False) + "\n",
    )  # fmt: skip
    for name, text in zip(FILES, texts, strict=True):
        write_output(out / name, text.encode(errors="backslashreplace"), "out")  # names of files may be no text
