"""A name in a recipe is the name of a file: `generator.name: srugan` is `models/generators/srugan.py`. A dotted name is a file
of the user's own, whose code then runs. Such a file has a `Config` (its options, typed) and a function that builds the part.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import traceback
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from sr_dist.core.config import Settings, typed
from sr_dist.core.errors import UserError, first_line, nearest
from sr_dist.core.version_0_1 import refuse_old_file

PACKAGES = {  # kind of part -> the package of its files
    "generator": "sr_dist.models.generators",
    "discriminator": "sr_dist.models.discriminators",
    "classifier": "sr_dist.models.classifiers",
    "objective": "sr_dist.objectives",
    "degradation": "sr_dist.data.degradations",
    "content": "sr_dist.losses.content",
    "metric": "sr_dist.evaluation.metrics",
    "optimizer": "sr_dist.training.optimizers",
    "tracker": "sr_dist.training.trackers",
    "source": "shards.sources",
}

_foreign_code: dict[str, None] = {}  # a line for each file that is not of this package and whose code this process runs, in order


def note_foreign_code(key: str, file: Path) -> None:
    _foreign_code[f"note: '{file}' ({key}) is not part of sr_dist; its code runs with all rights of this process"] = None


def note_foreign_package(key: str, name: str, version: str, licence: str) -> None:
    _foreign_code[f"note: {name} {version} ({key}; licence: {licence}) is not part of sr_dist; its own terms apply"] = None


def foreign_code() -> list[str]:
    """Lines for the log. The first lines of a run and of an evaluation are these."""
    return list(_foreign_code)


def names(package: str) -> list[str]:
    """The names that a recipe may use for one kind of part: the files of its folder."""
    spec = importlib.util.find_spec(package)
    assert spec and spec.submodule_search_locations, package
    folder = Path(next(iter(spec.submodule_search_locations)))
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def locate(package: str, name: str, key: str) -> tuple[str, Path]:
    """The module and file behind a name. Does not import it: parts import torch, and mistakes are reported before that."""
    own = "." in name
    if not own:
        if name not in names(package):
            raise UserError(f"{key}: no '{name}' in {package.replace('.', '/')}{nearest(name, names(package))}")
        name = f"{package}.{name}"
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.origin:
        raise UserError(f"{key}: no module '{name}' (searched in this folder and on the Python path)")
    path = Path(spec.origin)
    if path.suffix == ".py":  # ours too: a file of 0.1 may have been put into the package
        refuse_old_file(_syntax_tree(path), path, key)
    return name, path


def options(path: Path) -> list[str] | None:
    """The fields of a part's `Config`, read from its syntax tree; None if it inherits fields, which only an import shows."""
    for node in _syntax_tree(path).body:
        if isinstance(node, ast.ClassDef) and node.name == "Config":
            if [base.id for base in node.bases if isinstance(base, ast.Name)] != ["Settings"]:
                return None
            return [item.target.id for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)]
    return None


def literal(path: Path, name: str) -> Any:
    """The value that a part's file assigns to a name, read from its syntax tree; None if it assigns nothing."""
    for node in _syntax_tree(path).body:
        targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets if isinstance(node, ast.Assign) else []
        if not any(isinstance(target, ast.Name) and target.id == name for target in targets):
            continue
        assert isinstance(node, ast.Assign | ast.AnnAssign)
        try:
            return ast.literal_eval(node.value) if node.value else None
        except (ValueError, TypeError):
            raise UserError(
                f"'{path}', line {node.lineno}: {name} must be a literal, such as {{'psnr_y': 'higher'}}: it is read without "
                f"importing the file"
            ) from None
    return None


def check(package: str, name: str, given: Mapping[str, Any], key: str) -> None:
    """Refuses unknown names and unknown options without importing the part."""
    _, path = locate(package, name, f"{key}.name")
    known = options(path)
    for option in given:
        if known is not None and option not in known:
            own = "weight" if ".content." in key else "name"  # the key beside the part's own options
            near = nearest(option, [own, *known])
            whole = f"; --{key}='{{name: {name}}}' takes the place of the recipe's whole section" if own == "name" else ""
            raise UserError(f"{key}.{option}: unknown key{near}{whole if near.startswith('; choose') else ''}")


def resolve(package: str, name: str, given: Mapping[str, Any], key: str) -> tuple[ModuleType, Any]:
    """Imports a part and types its options: -> (module, its Config)."""
    module_name, path = locate(package, name, f"{key}.name")
    module = import_part(module_name, path, f"{key}.name")
    config = getattr(module, "Config", None)
    if not (isinstance(config, type) and issubclass(config, Settings)):
        raise UserError(f"{key}.name: '{path}' has no Config(Settings) class, so it is not a part that a recipe can name")
    need(module, "Objective" if package == PACKAGES["objective"] else "build", path, f"{key}.name")
    return module, typed(config, given, key)


def need(module: ModuleType, function: str, path: Path, key: str) -> ModuleType:
    """The module, which must have the function that builds the part."""
    need_function(module, function, path, key)
    return module


def need_function(module: ModuleType, function: str, path: Path, key: str) -> Any:
    """The function of a part's module."""
    if not callable(getattr(module, function, None)):
        raise UserError(f"{key}: '{path}' has no {function}(), so it is not a part that a recipe can name")
    return getattr(module, function)


def import_part(module: str, path: Path, key: str) -> ModuleType:
    """The module of a part. A file that it imports may have been written for version 0.1 too."""
    if not module.startswith(tuple(PACKAGES.values())):
        note_foreign_code(key, path)
    try:
        return importlib.import_module(module)
    except ImportError as problem:
        frames = traceback.extract_tb(problem.__traceback__)
        for file in {Path(frame.filename) for frame in frames if frame.filename.endswith(".py")} - {path, Path(__file__)}:
            if file.is_file():
                refuse_old_file(_syntax_tree(file), file, key)
        if (problem.name or "").partition(".")[0] in ("sr_dist", "shards"):
            raise UserError(f"{key}: '{path}' cannot be imported: {first_line(problem)}") from None
        raise


def _syntax_tree(path: Path) -> ast.Module:
    status = path.stat()
    return _parsed(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=256)
def _parsed(path: Path, mtime_ns: int, size: int) -> ast.Module:
    """Only read it. A file that has changed is parsed again."""
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as problem:
        raise UserError(f"'{path}', line {problem.lineno}: {problem.msg}") from None
