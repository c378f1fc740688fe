"""The columns of metrics and whether higher or lower is better, read from the metrics' files without importing them.

A metric file defines `BETTER` (column -> "higher" or "lower"), `NEEDS` (column -> published weights file) if it needs weights,
and `VIEW` if it compares two sets of images by the features of a network.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sr_dist.core import plugins
from sr_dist.core.plugins import PACKAGES

CLASSIFICATION = {"accuracy": "higher", "balanced_accuracy": "higher"}  # the columns of a classifier's validation


def metric_facts(metrics: Iterable[str], fact: str) -> dict[str, str]:
    """`BETTER` or `NEEDS` of several metrics, merged."""
    facts: dict[str, str] = {}
    for name in metrics:
        facts |= plugins.literal(plugins.locate(PACKAGES["metric"], name, "metrics")[1], fact) or {}
    return facts


def columns(metrics: Iterable[str], extractor: str | None = None) -> dict[str, str]:
    """The columns of metrics -> "higher" or "lower"."""
    result: dict[str, str] = {}
    for name in metrics:
        better = metric_facts([name], "BETTER")
        if extractor and compares_sets(name):
            better = {foreign_column(column, extractor_name(extractor)): direction for column, direction in better.items()}
        result |= better
    return result


def compares_sets(metric: str) -> bool:
    return plugins.literal(plugins.locate(PACKAGES["metric"], metric, "metrics")[1], "VIEW") is not None


def foreign_column(column: str, extractor: str) -> str:
    """The column of a distance between features of a network other than the FID Inception. It is never called FID."""
    return column.replace("fid", "fd").replace("kid", "kd") + f"_{extractor}"


def extractor_name(extractor: str) -> str:
    """The folder name of a run, or the stem of a file."""
    return Path(extractor).resolve().name if Path(extractor).is_dir() else Path(extractor).stem


def all_columns() -> dict[str, str]:
    """Every column that a validation can have -> "higher" or "lower"."""
    return {**metric_facts(plugins.names(PACKAGES["metric"]), "BETTER"), **CLASSIFICATION}


def better_direction(column: str) -> str | None:
    """ "higher" or "lower" for a validation column of any extractor; None if the column is unknown."""
    known, column = all_columns(), column.rpartition("/")[2]  # set5/psnr_y is one of several sets
    if column in known:
        return known[column]
    of_sets = metric_facts([name for name in plugins.names(PACKAGES["metric"]) if compares_sets(name)], "BETTER")
    return next((known[c] for c in of_sets if column.startswith(foreign_column(c, ""))), None)
