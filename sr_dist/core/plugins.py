"""A name in a recipe is the name of a file: `generator.name: srugan` is `models/generators/srugan.py`. A dotted name is a file
of the user's own. Such a file has a `Config` (its options, typed) and a function that builds the part.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from sr_dist.core.config import Settings, typed
from sr_dist.core.errors import UserError, nearest
from sr_dist.core.launch_env import Launch

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

MOVED = {  # modules and names of 0.1 that plug-in files import -> where they are now
    "sr_dist.batch": "sr_dist.core.batch",
    "sr_dist.batch.Verdict": "sr_dist.core.batch.DiscriminatorOutput",
    "sr_dist.config": "sr_dist.core.config",
    "sr_dist.errors": "sr_dist.core.errors",
    "sr_dist.ranks": "sr_dist.core.ranks",
    "sr_dist.resize": "sr_dist.core.resize",
    "sr_dist.plugins": "sr_dist.core.plugins",
    "sr_dist.files": "sr_dist.core.files",
    "sr_dist.pretrained": "sr_dist.models.pretrained",
    "sr_dist.sections": "sr_dist.recipe.sections",
    "sr_dist.labels": "sr_dist.recipe.labels",
    "sr_dist.recipe.refuse_classes": "sr_dist.recipe.checks.refuse_classes",
    "sr_dist.data.draws": "sr_dist.data.keyed_random",
    "sr_dist.data.jpeg": "sr_dist.data.jpeg_compression",
    "sr_dist.data.validation": "sr_dist.data.images",
    "sr_dist.models.initial": "sr_dist.models.initialization",
    "sr_dist.models.published": "sr_dist.models.imagenet",
    "sr_dist.models.weights": "sr_dist.models.trained",
    "sr_dist.models.frozen": "sr_dist.models.frozen_classifier",
    "sr_dist.losses.terms": "sr_dist.losses.content_terms",
    "sr_dist.losses.classes": "sr_dist.losses.classification",
    "sr_dist.eval.protocol": "sr_dist.evaluation.protocol",
    "sr_dist.eval.features": "sr_dist.evaluation.distances.features",
    "sr_dist.eval.frechet": "sr_dist.evaluation.distances.frechet",
    "sr_dist.eval.intervals": "sr_dist.evaluation.intervals",
    "sr_dist.eval.metrics": "sr_dist.evaluation.metrics",
}


def names(package: str) -> list[str]:
    """The names that a recipe may use for one kind of part: the files of its folder."""
    spec = importlib.util.find_spec(package)
    assert spec and spec.submodule_search_locations, package
    folder = Path(next(iter(spec.submodule_search_locations)))
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def locate(package: str, name: str, key: str) -> tuple[str, Path]:
    """The module and file behind a name, without importing it: parts import torch, and mistakes should be reported at once."""
    if "." not in name:
        if name not in names(package):
            raise UserError(f"{key}: no '{name}' in {package.replace('.', '/')}{nearest(name, names(package))}")
        name = f"{package}.{name}"
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.origin:
        raise UserError(f"{key}: no module '{name}' (looked for from this folder and on the Python path)")
    return name, Path(spec.origin)


def options(path: Path) -> list[str] | None:
    """The fields of a part's `Config`, read from its syntax tree; None when they are inherited and must be imported."""
    for node in _syntax_tree(path).body:
        if isinstance(node, ast.ClassDef) and node.name == "Config":
            if [base.id for base in node.bases if isinstance(base, ast.Name)] != ["Settings"]:
                return None
            return [item.target.id for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)]
    return None


def literal(path: Path, name: str) -> Any:
    """The value that a part's file assigns to a name, read from its syntax tree; None where it assigns nothing."""
    for node in _syntax_tree(path).body:
        targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets if isinstance(node, ast.Assign) else []
        if not any(isinstance(target, ast.Name) and target.id == name for target in targets):
            continue
        assert isinstance(node, ast.Assign | ast.AnnAssign) and node.value
        try:
            return ast.literal_eval(node.value)
        except ValueError:
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
            raise UserError(f"{key}.{option}: unknown key{nearest(option, [own, *known])}")


def resolve(package: str, name: str, given: Mapping[str, Any], key: str) -> tuple[ModuleType, Any]:
    """Imports a part and types its options: -> (module, its Config)."""
    module_name, path = locate(package, name, f"{key}.name")
    module = imported(module_name, path, f"{key}.name")
    config = getattr(module, "Config", None)
    if not (isinstance(config, type) and issubclass(config, Settings)):
        raise UserError(f"{key}.name: '{path}' has no Config(Settings) class, so it is not a part that a recipe can name")
    return module, typed(config, given, key)


def imported(module: str, path: Path, key: str) -> ModuleType:
    """The module. Imports that were right for version 0.1 are answered with the new ones."""
    try:
        return importlib.import_module(module)
    except ImportError as problem:
        changes = list(_new_imports(path))
        if not changes or not str(problem.name or "").startswith("sr_dist"):
            raise
        raise UserError(f"{key}: '{path}' was written for sr_dist 0.1; change {'; '.join(changes)}") from None


def _new_imports(path: Path) -> Iterator[str]:
    for node in ast.walk(_syntax_tree(path)):
        if not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        for alias in node.names:
            before = f"{node.module}.{alias.name}"
            after = MOVED.get(before) or (f"{MOVED[node.module]}.{alias.name}" if node.module in MOVED else None)
            if after:
                new_module, _, new_name = after.rpartition(".")
                yield f"'from {node.module} import {alias.name}' to 'from {new_module} import {new_name}'"


def call_refuses(module: ModuleType, options: Any, launch: Launch, key: str) -> str | None:
    """Why a part cannot run under a launch, or None."""
    if "zero_stage" in inspect.signature(module.refuses).parameters:
        raise UserError(
            f"{key}: '{module.__file__}' was written for sr_dist 0.1; change its refuses(config, *, zero_stage, cuda, ranks) to "
            f"refuses(config, launch) with launch.stage, launch.cuda and launch.ranks"
        )
    return module.refuses(options, launch)


def _syntax_tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
