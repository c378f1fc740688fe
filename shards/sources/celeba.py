"""CelebA: INPUT has faces and list_attr_celeba.txt or .csv (also in Anno/), the 40 attributes of every face as 1 and -1."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from shards.items import Files, Listing, image_names
from sr_dist.core.config import Absent, OptionalText, Settings
from sr_dist.core.errors import UserError

PARTS = ("train", "validation", "test")


class Config(Settings):
    part: Annotated[Literal["train", "validation", "test"] | None, Absent] = None
    """Take one part of list_eval_partition.txt or .csv (also in Eval/); all faces where it is not given."""
    images: OptionalText = None
    """The folder of the images inside INPUT, needed where several folders hold images of the same names."""


def listing(root: str, config: Config) -> Listing:
    folder = Path(root, config.images) if config.images else Path(root)
    files = Files(folder, image_names(folder))
    attributes, values = read_attributes(_list_file(Path(root), "list_attr_celeba"))
    parts = read_parts(_list_file(Path(root), "list_eval_partition")) if config.part else {}
    items, rejects = [], []
    paths: dict[str, str] = {}
    for item in files:
        name = item.path.rpartition("/")[2]
        stem = name.rpartition(".")[0]
        if stem in paths:
            raise UserError(f"INPUT: two images are called '{name}', such as '{paths[stem]}'; --images=FOLDER takes one folder")
        paths[stem] = item.path
        if config.part and parts.get(stem) != config.part:
            continue
        if stem not in values:
            rejects.append({"key": item.key, "path": item.path, "reason": "the list of attributes does not name it"})
            continue
        items.append(item._replace(attributes=values[stem]))
    return Listing(items, attributes=attributes, rejects=rejects)


def read_attributes(path: Path) -> tuple[list[str], dict[str, tuple[bool, ...]]]:
    """The names of the attributes, and their values for every image by its name without suffix. The count line is optional."""
    lines = _rows(path)
    _, names = next(lines, (0, []))
    if len(names) == 1 and names[0].isdigit():
        _, names = next(lines, (0, []))
    names = names[1:] if names[:1] == ["image_id"] else names
    values: dict[str, tuple[bool, ...]] = {}
    for number, (image, *row) in lines:
        if len(row) != len(names) or not set(row) <= {"1", "-1", "0"}:
            raise UserError(f"INPUT: '{path}' line {number}: needs a name and {len(names)} times 1 or -1")
        values[image.rpartition(".")[0]] = tuple(value == "1" for value in row)
    if not names or len(set(names)) < len(names):
        raise UserError(f"INPUT: '{path}' does not begin with the names of the attributes")
    return names, values


def read_parts(path: Path) -> dict[str, str]:
    """The part of every image by its name without suffix."""
    parts = {}
    for number, row in _rows(path):
        if row[0] == "image_id":
            continue
        if len(row) != 2 or row[1] not in ("0", "1", "2"):
            raise UserError(f"INPUT: '{path}' line {number}: needs a name and 0, 1 or 2")
        parts[row[0].rpartition(".")[0]] = PARTS[int(row[1])]
    return parts


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The numbered lines of a list, split at blanks and commas. Empty lines are left out."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"INPUT: '{path}' cannot be read: {problem}") from None
    yield from ((number, row) for number, line in enumerate(lines, 1) if (row := line.replace(",", " ").split()))


def _list_file(root: Path, name: str) -> Path:
    for folder in (".", "Anno", "Eval"):
        for suffix in (".txt", ".csv"):
            if (path := root / folder / (name + suffix)).is_file():
                return path
    raise UserError(f"INPUT: '{root}' has no {name}.txt or {name}.csv, nor have its folders Anno and Eval")
