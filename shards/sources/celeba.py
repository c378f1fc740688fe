"""CelebA: a folder of faces with list_attr_celeba.txt (or .csv), the 40 attributes of every face as 1 and -1.

INPUT holds the list (also in Anno/) and the images, in folders or not. --part takes one of the splits of list_eval_partition.txt
(also in Eval/). --images=FOLDER names the images' folder inside INPUT where there are several.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from shards.items import Files, Listing, image_names
from sr_dist.core.config import Absent, Settings
from sr_dist.core.errors import UserError

PARTS = ("train", "validation", "test")


class Config(Settings):
    part: Annotated[Literal["train", "validation", "test"] | None, Absent] = None
    images: Annotated[str | None, Absent] = None


def listing(root: str, config: Config) -> Listing:
    folder = Path(root, config.images) if config.images else Path(root)
    files = Files(folder, image_names(folder))
    attributes, rows = read_attributes(_find(Path(root), "list_attr_celeba"))
    parts = read_parts(_find(Path(root), "list_eval_partition")) if config.part else {}
    items, rejects = [], []
    seen: dict[str, str] = {}
    for item in files:
        name = item.path.rpartition("/")[2]
        stem = name.rpartition(".")[0]
        if stem in seen:
            raise UserError(f"INPUT: two images are called '{name}', such as '{seen[stem]}'; --images=FOLDER takes one folder")
        seen[stem] = item.path
        if config.part and parts.get(stem) != config.part:
            continue
        if stem not in rows:
            rejects.append({"key": item.key, "path": item.path, "reason": "the list of attributes does not name it"})
            continue
        items.append(item._replace(attributes=rows[stem]))
    return Listing(items, attributes=attributes, rejects=rejects)


def read_attributes(path: Path) -> tuple[list[str], dict[str, tuple[bool, ...]]]:
    """The names of the attributes, and the values of every image by its name without suffix. The count line may be missing."""
    lines = _rows(path)
    _, names = next(lines, (0, []))
    if len(names) == 1 and names[0].isdigit():
        _, names = next(lines, (0, []))
    names = names[1:] if names[:1] == ["image_id"] else names
    found: dict[str, tuple[bool, ...]] = {}
    for number, (image, *values) in lines:
        if len(values) != len(names) or not set(values) <= {"1", "-1", "0"}:
            raise UserError(f"INPUT: '{path}' line {number}: wants a name and {len(names)} times 1 or -1")
        found[image.rpartition(".")[0]] = tuple(value == "1" for value in values)
    if not names or len(set(names)) < len(names):
        raise UserError(f"INPUT: '{path}' does not begin with the names of the attributes")
    return names, found


def read_parts(path: Path) -> dict[str, str]:
    found = {}
    for number, row in _rows(path):
        if row[0] == "image_id":
            continue
        if len(row) != 2 or row[1] not in ("0", "1", "2"):
            raise UserError(f"INPUT: '{path}' line {number}: wants a name and 0, 1 or 2")
        found[row[0].rpartition(".")[0]] = PARTS[int(row[1])]
    return found


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The numbered lines of a list, cut at blanks or commas; empty lines are left out."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"INPUT: '{path}' cannot be read: {problem}") from None
    yield from ((number, row) for number, line in enumerate(lines, 1) if (row := line.replace(",", " ").split()))


def _find(root: Path, name: str) -> Path:
    for folder in (".", "Anno", "Eval"):
        for suffix in (".txt", ".csv"):
            if (path := root / folder / (name + suffix)).is_file():
                return path
    raise UserError(f"INPUT: '{root}' has no {name}.txt or {name}.csv (looked for there, in Anno and in Eval)")
