"""A name in a recipe is the name of a file: `generator.name: srugan` is `models/generators/srugan.py`, and a dotted name
is a file of the user's own. Every such file has a `Config` (its options, typed) and a function that builds the thing.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from sr_dist.config import Settings, typed
from sr_dist.errors import UserError, nearest


def names(package: str) -> list[str]:
    """The names that a recipe may use for one kind of part: the files of its folder."""
    spec = importlib.util.find_spec(package)
    assert spec and spec.submodule_search_locations, package
    folder = Path(next(iter(spec.submodule_search_locations)))
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def locate(package: str, name: str, key: str) -> tuple[str, Path]:
    """The module and file behind a name, found without importing it: parts import torch, and mistakes should not wait."""
    if "." not in name:
        if name not in names(package):
            raise UserError(f"{key}: no '{name}' in {package.replace('.', '/')}{nearest(name, names(package))}")
        name = f"{package}.{name}"
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a user's own file is looked for where the command was given
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.origin:
        raise UserError(f"{key}: no module '{name}' (looked for from this folder and on the Python path)")
    return name, Path(spec.origin)


def options(path: Path) -> list[str] | None:
    """The fields of a part's `Config`, read from its syntax tree; None when they are inherited and must be imported."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == "Config":
            if [base.id for base in node.bases if isinstance(base, ast.Name)] != ["Settings"]:
                return None
            return [item.target.id for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)]
    return None


def literal(path: Path, name: str) -> Any:
    """What a part's file assigns to a name, read from its syntax tree; None where it does not."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(target, ast.Name) and target.id == name for target in node.targets):
            return ast.literal_eval(node.value)
    return None


def check(package: str, name: str, given: Mapping[str, Any], key: str) -> None:
    """Refuses unknown names and unknown options without importing the part."""
    _, path = locate(package, name, f"{key}.name")
    known = options(path)
    for option in given:
        if known is not None and option not in known:
            own = "weight" if ".content." in key else "name"  # the key beside the part's own options
            raise UserError(f"{key}.{option}: unknown key{nearest(option, [own, *known])}")


def resolve(package: str, name: str, given: Mapping[str, Any], key: str) -> tuple[ModuleType, Any]:
    """Imports a part and types its options: -> (module, its Config)."""
    module_name, path = locate(package, name, f"{key}.name")
    module = importlib.import_module(module_name)
    config = getattr(module, "Config", None)
    if not (isinstance(config, type) and issubclass(config, Settings)):
        raise UserError(f"{key}.name: '{path}' has no Config(Settings) class, so it is not a part that a recipe can name")
    return module, typed(config, given, key)
