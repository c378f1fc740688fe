"""Scores -> report.json for programs, report.md for papers, report.html for eyes, images.jsonl with every row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import metadata
from itertools import combinations
from pathlib import Path
from typing import Any

from sr_dist.core.files import write_whole
from sr_dist.data.select import Portion
from sr_dist.evaluation.classifiers.attributes import judgements, ranking
from sr_dist.evaluation.distances.features import Estimate
from sr_dist.evaluation.intervals import differences
from sr_dist.evaluation.metric_set import Metrics
from sr_dist.evaluation.protocol import Protocol
from sr_dist.evaluation.report.attribute_tables import CONDITIONS, Table, tables
from sr_dist.evaluation.scoring import Scores

TOOLS = ("torch", "torchmetrics", "lpips", "clean-fid", "numpy", "scipy", "pillow")


@dataclass(frozen=True)
class Report:
    protocol: Protocol
    data: str
    names: list[str]  # of the images
    order: list[str]  # of the methods
    scores: Scores
    sources: dict[str, Any]  # where trained methods come from
    metrics: Metrics
    notes: list[str]  # what was done to images before they were scored
    portion: Portion | None = None  # of the data

    @cached_property
    def methods(self) -> dict[str, dict[str, float | None]]:
        """Method -> column -> value."""
        return {method: self.scores.means(method) for method in self.order}

    @cached_property
    def columns(self) -> list[str]:
        """Those that have a value, or would have on other images."""
        return [column for column in self.scores.better if column not in self.scores.missing]

    @cached_property
    def image_columns(self) -> list[str]:
        return [column for column in self.columns if column not in self.scores.distances and column not in self.scores.shares]

    @cached_property
    def attributes(self) -> dict[str, Any]:
        return judgements(self.metrics.judges, self.scores.opinions)

    @cached_property
    def ranking(self) -> dict[str, Any]:
        return ranking(self.attributes, self.order)

    @cached_property
    def differences(self) -> dict[str, Any]:
        return differences(self.scores.rows, self.order, self.image_columns)

    @property
    def pairs(self) -> dict[str, Any]:
        """The differences to look at: those of trained methods, where there are any."""
        trained = {f"{b} - {a}" for a, b in combinations(self.order, 2) if {a, b} & self.sources.keys()}
        return {pair: found for pair, found in self.differences.items() if not trained or pair in trained}

    @cached_property
    def tables(self) -> list[Table]:
        """What classifiers saw."""
        shown = [method for method in self.order if method in self.sources] or self.order
        return list(tables(self.attributes, self.ranking, shown, list(self.pairs)))

    @property
    def best(self) -> dict[str, float | None]:
        return {column: self._best(column) for column in self.columns}

    def _best(self, column: str) -> float | None:
        there = [value for values in self.methods.values() if (value := values[column]) is not None]
        return (max if self.scores.better[column] == "higher" else min)(there, default=None)

    @property
    def missing(self) -> dict[str, str]:
        small = "an image is too small for border or window, or what the method made of it is not finite"
        lacking = {
            f"{method}/{column}": small
            for method, values in self.methods.items() for column, value in values.items()
            if value is None and column not in self.scores.missing
        }  # fmt: skip
        return {**lacking, **self.scores.missing}

    @property
    def not_computed(self) -> dict[str, list[str]]:
        """Reason -> the columns, or methods' columns, that it keeps from being computed."""
        missing = self.missing
        return {reason: [key for key in missing if missing[key] == reason] for reason in missing.values()}

    def conditions_of_features(self) -> dict[str, Any]:
        """The protocol of LPIPS and of distances between sets, where they were computed."""
        found: dict[str, Any] = {}
        if any(column.startswith("lpips") for column in self.columns):
            weights = {c: file for module in self.metrics.modules for c, file in getattr(module, "NEEDS", {}).items()}
            found["lpips"] = {
                "version": "0.1",
                "package": metadata.version("lpips"),
                "weights": {column: file for column, file in weights.items() if column in self.columns},
                "input": "whole images without border, in [-1, 1]",
            }
        if self.metrics.extractor:
            key = f"fd_{self.metrics.extractor.name}" if self.metrics.foreign else "fid"
            found[key] = {**self.metrics.extractor.describe(), "n": len(self.names), "input": "8-bit images"}
        return found

    def tree(self) -> dict[str, Any]:
        return {
            "protocol": {**self.protocol.describe(), **self.conditions_of_features()},
            "data": self.data,
            "portion": self.portion.describe() if self.portion else None,
            "n": len(self.names),
            "notes": self.notes,
            "methods": self.methods,
            "distances": {column: asdict(found) for column, found in self.scores.distances.items()},
            "differences": self.differences,
            "attributes": self.attributes,
            "ranking": self.ranking,
            "missing": self.missing,
            "sources": self.sources,
            "images": "images.jsonl",
            "tool": {name: metadata.version(name) for name in TOOLS},
        }


def write(out: Path, report: Report, page: str) -> None:
    """Writes the four files; report.json last, so that its presence means that all are there."""
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "images.jsonl", "".join(json.dumps(row) + "\n" for row in report.scores.rows).encode())
    write_whole(out / "report.md", (markdown(report) + "\n").encode())
    write_whole(out / "report.html", page.encode())
    write_whole(out / "report.json", (json.dumps(report.tree(), indent=1, allow_nan=False) + "\n").encode())


def markdown(report: Report) -> str:
    """The table with its conditions, the best value of every column in bold; distances and differences with intervals."""
    rows = [[_plain(method), *_cells(report, method)] for method in report.order]
    blocks = [_table(["method", *report.columns], rows), conditions(report)]
    if report.scores.distances:
        blocks += [_distances(report), "In brackets: 95 % intervals. The floor lies between two halves of HR, each of n / 2."]
    if report.pairs and report.image_columns:
        cells = [[_plain(pair), *(interval(c, found[c]) for c in report.image_columns)] for pair, found in report.pairs.items()]
        blocks += [
            _table(["difference", *report.image_columns], cells),
            "Means over images of paired differences, 95 % intervals.",
        ]
    blocks += [block for table in report.tables if not table.folded for block in _attributes(table)]
    blocks += [CONDITIONS] if report.tables else []
    blocks += [f"Not computed: {', '.join(columns)} ({reason})" for reason, columns in report.not_computed.items()]
    return "\n\n".join(blocks)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace("| --- ", "|---").replace("|--- |", "|---|")


def _attributes(table: Table) -> list[str]:
    cells = [[_plain(cell.text) for cell in row] for row in table.rows]
    return [f"**{table.title}**", _table([_plain(name) for name in table.columns], cells), *([table.note] if table.note else [])]


def _cells(report: Report, method: str) -> list[str]:
    found = []
    for column in report.columns:
        value = report.methods[method][column]
        text = number(column, value)
        found.append(f"**{text}**" if value is not None and value == report.best[column] else text)
    return found


def _distances(report: Report) -> str:
    head = [f"{column} (n {_n(found)}, floor {number(column, found.floor)})" for column, found in report.scores.distances.items()]
    rows = [
        [_plain(method), *(estimate(column, found.methods.get(method)) for column, found in report.scores.distances.items())]
        for method in report.order
    ]
    return _table(["method", *head], rows)


def _n(found: Any) -> str:
    return str(next((there.n for there in found.methods.values()), "-"))


def _plain(name: str) -> str:
    return name.replace("|", "\\|")


def number(column: str, value: float | None, sign: str = "") -> str:
    """A value with as many digits as its metric is read with."""
    if value is None:
        return "-"
    digits = (
        5 if "kid" in column or "kd_" in column else 2 if column.startswith("psnr") or "fid" in column or "fd_" in column else 4
    )
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"  # + 0.0 makes -0.0 positive


def interval(column: str, found: Mapping[str, float] | None) -> str:
    if found is None:
        return "-"
    mean, low, high = (number(column, found[key], "+") for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def estimate(column: str, found: Estimate | None) -> str:
    if found is None or found.low is None:
        return number(column, found.value if found else None)
    return f"{number(column, found.value)} [{number(column, found.low)}, {number(column, found.high)}]"


def conditions(report: Report) -> str:
    rules = report.protocol
    rounding = "8-bit images" if rules.eight_bit else "floats, not rounded"
    luma = "rounded BT.601 Y" if rules.rounded_luma else "unrounded BT.601 Y"
    features = report.conditions_of_features()
    of = f" ({report.portion})" if report.portion else ""
    lpips = f" LPIPS {features['lpips']['version']}." if "lpips" in features else ""
    sets = "".join(
        f" {name}: n {found['n']}, extractor {', '.join(filter(None, (found['extractor'], found.get('network'))))} "
        f"(sha256 {found['weights_sha256'][:8]}), {found['resize']}."
        for name, found in features.items() if name != "lpips"
    )  # fmt: skip
    return (
        f"x{rules.scale}, {len(report.names)} images of {report.data}{of}; protocol {rules.name}: {luma} and RGB, "
        f"border {rules.border}, {rounding}, mean of per-image values.{lpips}{sets}"
        + "".join(f" {note[0].upper()}{note[1:]}." for note in report.notes)
    )
