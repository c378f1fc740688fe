"""ImageNet's validation images: INPUT is one folder, and --truth=FILE has the classes.

Three forms of that file are read:

name wnid         such as LOC_val_solution.csv: classes are numbered in the order of sorted wnids, as class_folders does
name number       such as val.txt: a number from 0 up
number            the devkit's ILSVRC2012_validation_ground_truth.txt: a number from 1 up per image, in the order of their names.
                  The devkit has an order of its own. With --synsets=FILE, whose line i begins with the wnid of number i, the
                  classes get the numbers of class_folders.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import numpy as np

from shards.items import Files, Listing, image_names
from sr_dist.core.config import Absent, Settings
from sr_dist.core.errors import UserError

WNID = re.compile(r"n\d{8}")


class Config(Settings):
    truth: Path
    """The classes: a line `name wnid` or `name number` per image, or the devkit's list of numbers from 1 up."""
    synsets: Annotated[Path | None, Absent] = None
    """The devkit's order of the classes: a file whose line i begins with the wnid of number i."""


def listing(root: str, config: Config) -> Listing:
    names = image_names(root)
    rows = _rows(config.truth, "truth")
    if rows and rows[0][0] == "ImageId":
        rows = rows[1:]
    if all(len(row) == 1 for row in rows):
        truth = dict(zip(names, _devkit_classes(rows, config, len(names)), strict=True))
    else:
        truth = _named_classes(names, rows, config.truth)
    rejects = [
        {"key": name, "path": f"{root}/{name}", "reason": f"'{config.truth.name}' does not name it"}
        for name in names
        if name not in truth
    ]
    names = [name for name in names if name in truth]
    classes = _sorted_classes(set(truth.values()), config.truth)
    number = {name: i for i, name in enumerate(classes)}
    labels = np.array([number[truth[name]] for name in names], np.int32)
    return Listing(Files(root, names, labels), classes, rejects=rejects)


def _devkit_classes(rows: list[list[str]], config: Config, num_images: int) -> list[str]:
    """The class of every image, in the order of their names."""
    if len(rows) != num_images:
        raise UserError(f"truth: '{config.truth}' has {len(rows)} lines for {num_images} images")
    numbers = [int(row[0]) if row[0].isdigit() else 0 for row in rows]
    wnids = _synsets(config.synsets) if config.synsets else None
    most = len(wnids) if wnids else max(numbers, default=0)
    for line, number in enumerate(numbers, 1):
        if not 1 <= number <= most:
            raise UserError(f"truth: '{config.truth}' line {line}: '{rows[line - 1][0]}' is not a number from 1 to {most}")
    return [wnids[number - 1] if wnids else str(number - 1) for number in numbers]


def _synsets(path: Path) -> list[str]:
    """The wnids in the devkit's order."""
    wnids = [row[0] for row in _rows(path, "synsets")]
    for line, wnid in enumerate(wnids, 1):
        if not WNID.fullmatch(wnid):
            raise UserError(f"synsets: '{path}' line {line}: '{wnid}' is not a wnid such as n01440764")
        if wnid in wnids[: line - 1]:
            raise UserError(f"synsets: '{path}' names {wnid} twice")
    return wnids


def _named_classes(names: list[str], rows: list[list[str]], path: Path) -> dict[str, str]:
    """The class of every image that the file names, with or without a suffix."""
    stems = {name.rpartition("/")[2].rpartition(".")[0]: name for name in names}
    truth = {}
    for line, row in enumerate(rows, 1):
        if len(row) < 2 or not (WNID.fullmatch(row[1]) or row[1].isdigit()):
            raise UserError(f"truth: '{path}' row {line}: needs the name of an image and a wnid (n01440764) or number")
        stem = row[0].rpartition(".")[0] or row[0]
        if stem in stems:
            truth[stems[stem]] = row[1]
    return truth


def _sorted_classes(names: set[str], path: Path) -> list[str]:
    """Sorted wnids, or the numbers up to the highest."""
    kinds = {bool(WNID.fullmatch(name)) for name in names}
    if len(kinds) > 1:
        raise UserError(f"truth: '{path}' has both wnids and numbers")
    if kinds == {False}:
        return [str(number) for number in range(max(map(int, names)) + 1)]
    return sorted(names)


def _rows(path: Path, key: str) -> list[list[str]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"{key}: '{path}' cannot be read: {problem}") from None
    return [row for line in lines if (row := line.replace(",", " ").split())]
