"""The folder of a report. A report may replace one that it covers: the same question with as many images, methods and metrics."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sr_dist.core.formats import REMOVE, refuse_unknown
from sr_dist.core.json_text import read_json
from sr_dist.core.printable import plural
from sr_dist.evaluation.report.report import FILES, FORMAT, PICTURES, REPORT

# Of a report, or of a planned one: the same keys, methods as a list, `columns`, and `digest_of_first` images.
Tree = Mapping[str, Any]


def free_folder(folder: Path, planned: Tree, identity: str) -> Path:
    """The folder, or FOLDER-2, FOLDER-3, ...: the first one where nothing is lost."""
    if is_free(folder, planned, identity):
        return folder
    return next(other for other in numbered(folder) if is_free(other, planned, identity))


def numbered(folder: Path) -> Iterator[Path]:
    """FOLDER-2, FOLDER-3, ..."""
    whole = folder if folder.name not in ("", "..") else folder.resolve()  # `.` has no name
    return (whole.with_name(f"{whole.name}-{number}") for number in itertools.count(2))


def is_free(folder: Path, planned: Tree, identity: str) -> bool:
    """Whether the planned report may be written there. Without report.json, other files are of this evaluation or foreign."""
    if (folder / REPORT).exists():
        return covers(planned, read_report(folder))
    return (folder / ".partial" / identity).is_dir() or not any((folder / name).exists() for name in FILES)


def read_report(folder: Path) -> Any:
    """The tree of a report, or None for another file of that name. An unknown format is refused."""
    path = folder / REPORT
    try:
        tree = read_json(path)
    except (OSError, ValueError):
        return None
    if isinstance(tree, dict):
        refuse_unknown(tree, FORMAT, path, "out", REMOVE)
    return tree


def covers(planned: Tree, old: Any) -> bool:
    """Whether nothing of the old report is missing from the planned one. Reports of 0.1.0 do not state everything."""
    try:
        values = old.get("methods", {})
        return (
            all(old[key] == planned[key] for key in ("data", "portion"))
            and _has_images(planned, old)
            and all(_is_same(value, planned["protocol"].get(key)) for key, value in old["protocol"].items())
            and values.keys() <= set(planned["methods"])
            and {name for row in values.values() for name, value in row.items() if value is not None} <= set(planned["columns"])
            and all(_weights(old, kind) <= _weights(planned, kind) for kind in ("sources", "attributes"))
        )
    except (AttributeError, KeyError, TypeError):  # a file of another program
        return False


def _has_images(planned: Tree, old: Tree) -> bool:
    """The same images, or these and more after them, as without --limit."""
    wanted, n = planned["inputs"], old.get("n", 0)
    if n < planned["n"]:
        wanted = {**wanted, "images": planned["digest_of_first"](n)}
    return n <= planned["n"] and {**wanted, **old.get("inputs", {})} == wanted


def _is_same(old: Any, planned: Any) -> bool:
    """A condition of the numbers. A report adds to that of an extractor how many images it saw."""
    return planned.items() <= old.items() if isinstance(old, dict) and isinstance(planned, dict) else old == planned


def _weights(tree: Tree, kind: str) -> set[tuple[str, str]]:
    return {(name, about["sha256"]) for name, about in tree.get(kind, {}).items()}


def summary(folder: Path) -> str:
    """A report in the words of a note."""
    tree = read_report(folder)
    if not isinstance(tree, dict) or not tree.keys() & {"n", "find"}:
        return "file of another program"
    return f"report of {plural(tree['n'], 'image')}" if "n" in tree else "report of a search"


def move_away(folder: Path) -> str:
    """Moves the files of a report to FOLDER-2, ...: -> a note about it."""
    text, target = summary(folder), next(other for other in numbered(folder) if not other.exists())
    target.mkdir()
    for name in (*FILES, PICTURES):
        if (folder / name).exists():
            os.rename(folder / name, target / name)
    return f"note: the {text} in '{folder}' is now in '{target}', because this one has other images, metrics or weights"
