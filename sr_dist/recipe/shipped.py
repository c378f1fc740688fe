"""The recipes that come with the package: `esrgan_x4` in a command is `configs/esrgan_x4.yaml`, from any folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from sr_dist.core.errors import UserError, nearest
from sr_dist.core.run_layout import RECIPE

PACKAGE = Path(__file__).resolve().parents[1]
SCHEMA = "schema.json"  # beside the recipes, for editors


def folder() -> Path:
    """`sr_dist/configs` of an installed wheel, `configs` beside the package of a checkout."""
    inside = PACKAGE / "configs"
    return inside if inside.is_dir() else PACKAGE.parent / "configs"


def names() -> list[str]:
    return sorted(path.stem for path in folder().glob("*.yaml"))


def locate(recipe: str | Path) -> Path:
    """The file of a recipe: a path, or the name of one that comes with the package."""
    path, name = Path(recipe), str(recipe)
    if path.is_file() or not name:
        return path
    if name in names():
        return folder() / f"{name}.yaml"
    if path.is_dir():
        raise UserError(_instead_of(path))
    if "/" not in name and not path.suffix and not path.exists():
        raise UserError(f"no recipe '{name}'{nearest(name, names())}")
    if path.stem in names() and not path.exists():
        raise UserError(f"no file '{name}'; the recipe of the package is called '{path.stem}'")
    return path


def of_scale(name: str, scale: int) -> str:
    """The end of a message about another scale: the recipe that is the same at that scale, if there is one."""
    other = re.sub(r"_x\d+(?=_|$)", f"_x{scale}", name)
    return f"; the recipe {other} has that scale" if other != name and other in names() else ""


def _instead_of(folder: Path) -> str:
    """What to do where a folder was named as a recipe."""
    if not (folder / RECIPE).is_file():
        return f"RECIPE: '{folder}' is a folder; name a YAML file"
    own = folder.resolve()
    command = f"{shlex.quote(str(folder / RECIPE))} --runs={shlex.quote(str(folder.parent))} --name={shlex.quote(own.name)}"
    return f"RECIPE: '{folder}' is a run folder; its recipe continues it: {command}"


def title(name: str) -> str:
    """The first sentence of a recipe's header."""
    return first_sentence(header(name))


def first_sentence(text: str) -> str:
    return text.replace("\n", " ").partition(". ")[0].removesuffix(".")


def header(name: str) -> str:
    """The comment that a recipe begins with, without the line for editors."""
    lines: list[str] = []
    for line in (folder() / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    return "\n".join(line for line in lines if not line.startswith("yaml-language-server:"))
