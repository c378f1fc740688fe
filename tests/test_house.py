"""The rules of the house, read from the syntax trees: who imports whom, one home per library, sizes, no leftovers."""

from __future__ import annotations

import ast
import re
from importlib import metadata
from pathlib import Path

import pytest

from sr_dist.evaluation.report import report
from sr_dist.tools import doctor

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path.relative_to(ROOT) for package in ("sr_dist", "shards") for path in (ROOT / package).rglob("*.py"))
FLOORS = {  # a file imports its own room and rooms of lower floors, never upward or sideways
    "core": 0, "recipe": 1, "models": 2, "losses": 3, "data": 4, "evaluation": 5, "objectives": 5, "training": 6, "tools": 7,
    "commands": 8,
}  # fmt: skip
FOR_SHARDS = ("sr_dist.core", "sr_dist.data.format", "sr_dist.data.jpeg_rows", "sr_dist.data.order")
HOMES = {
    "accelerate": ("sr_dist/core/ranks.py", "sr_dist/training/"),
    "deepspeed": ("sr_dist/training/deepspeed.py",),
    "wandb": ("sr_dist/training/trackers/wandb.py",),
    "torch.utils.tensorboard": ("sr_dist/training/trackers/tensorboard.py",),
    "wandb_workspaces": ("sr_dist/tools/dashboard.py",),
    "matplotlib": ("sr_dist/tools/plot.py",),
    "tqdm": ("sr_dist/core/progress.py",),
    "webdataset": ("sr_dist/data/", "sr_dist/tools/data_speed.py"),
    "torchmetrics": ("sr_dist/evaluation/metrics/",),
    "cleanfid": ("sr_dist/evaluation/distances/extractor.py", "sr_dist/tools/distance_speed.py"),
    "pyiqa": ("sr_dist/evaluation/pyiqa_metrics.py",),
    "lpips": ("sr_dist/evaluation/metrics/", "sr_dist/losses/content/"),
    "fire": ("sr_dist/core/cli.py",),
    "yaml": ("sr_dist/core/config.py",),
    "torch.distributed": ("sr_dist/core/ranks.py",),
    "onnxruntime": ("sr_dist/models/onnx_outputs.py",),
    "skimage": ("shards/sources/",),
    "lmdb": ("shards/sources/lmdb.py",),
}
LIBRARY_NAMES = ("found_inf",)  # of torch
HEAVY = ("torch", "torchvision", "accelerate", "webdataset", "matplotlib", "wandb_workspaces")


def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def modules_of(node: ast.AST) -> set[str]:
    """The modules that an import statement names."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom) and node.module and node.module != "__future__":
        inside = {f"{node.module}.{alias.name}" for alias in node.names}
        return {name for name in inside if _is_module(name)} or {node.module}
    return set()


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at the top or inside a function."""
    return {name for node in ast.walk(tree(path)) for name in modules_of(node)}


def _is_module(name: str) -> bool:
    place = ROOT.joinpath(*name.split("."))
    return name.startswith(("sr_dist", "shards")) and (place.with_suffix(".py").exists() or place.is_dir())


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FLOORS else "commands"


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] == "sr_dist"], ids=str)
def test_imports_go_down_only(path):
    home = room(".".join(path.with_suffix("").parts))
    for module in imports(path):
        assert not module.startswith("shards"), f"{path} imports {module}; the library does not know the tool"
        if module.startswith("sr_dist") and path != Path("sr_dist/__init__.py"):
            assert module != "sr_dist", f"{path} imports from sr_dist itself"
            target = room(module)
            assert target == home or FLOORS[target] < FLOORS[home], f"{path} ({home}) imports {module} ({target})"


def test_no_circle_of_imports():
    graph = {".".join(path.with_suffix("").parts): imports(path) for path in FILES}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way[way.index(module) :], module))
        if module in graph and module not in done:
            for name in graph[module]:
                visit(name, (*way, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] == "shards"], ids=str)
def test_shards_need_only_the_format_the_order_and_the_core(path):
    for module in imports(path):
        assert not module.startswith("sr_dist") or module.startswith(FOR_SHARDS), f"{path} imports {module}"
        assert not module.startswith("torch"), f"{path} imports {module}: shards are built on machines without torch"


@pytest.mark.parametrize("library", HOMES)
def test_every_library_has_one_home(library):
    for path in FILES:
        if any(module == library or module.startswith(f"{library}.") for module in imports(path)):
            assert str(path).startswith(HOMES[library]), f"{path} imports {library}"


def test_reports_and_the_doctor_name_libraries_that_are_imported():
    """torchmetrics stood among the versions behind a report's numbers, none of which it computes, and training was called
    broken without it."""
    modules = {name.split(".")[0] for path in FILES for name in imports(path)}
    distributions = {name for module in modules for name in metadata.packages_distributions().get(module, ())}
    assert {name.lower() for name in report.LIBRARIES} <= {name.lower() for name in distributions}
    assert set(doctor.REQUIRED) <= modules


def test_imports_inside_functions_are_of_what_loads_slowly():
    """Such an import hides no circle: a comment says what it spares."""
    for path in FILES:
        lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
        for function in [node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef)]:
            inside = [node for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)]
            block = {node.lineno for node in inside}  # one comment serves imports on lines that follow each other
            for node in inside:
                first = node.lineno
                while first - 1 in block:
                    first -= 1
                assert "#" in lines[first - 1], f"{path}:{node.lineno}"


def test_commands_import_nothing_heavy_before_they_work():
    for path in FILES:
        if "def main(argv" in (ROOT / path).read_text(encoding="utf-8"):
            top = {name for node in tree(path).body for name in modules_of(node)}
            assert not {name for name in top if name.split(".")[0] in HEAVY}, path


def test_plugin_folders_have_empty_inits():
    for path in FILES:
        if path.name == "__init__.py" and path.parts != ("sr_dist", "__init__.py"):
            assert not (ROOT / path).read_text().strip(), f"{path}: a new part must not need a line in it"


def test_files_functions_and_constructors_are_small():
    """450 lines to a file, 6 parameters to a function, 8 to a constructor; dataclasses and settings have fields instead."""
    for path in FILES:
        assert len((ROOT / path).read_text(encoding="utf-8").splitlines()) <= 450, path
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef):
                names = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                count = len([name for name in names if name.arg not in ("self", "cls")])
                assert count <= (8 if node.name == "__init__" else 6), f"{path}: {node.name} takes {count} parameters"


def test_no_two_files_of_tests_have_one_name():
    """pytest imports them by their names alone; the second is an error, which a run of one folder does not show."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert [name for name in sorted(set(names)) if names.count(name) > 1] == []


def test_names_say_what_they_name():
    """No identifier has one of these words between its underscores: they name whatever was at hand when they were written."""
    empty = {"found", "chosen", "there", "said", "asked", "kept", "here", "what"}
    for path in [*FILES, *(p.relative_to(ROOT) for p in (ROOT / "tests").rglob("*.py"))]:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom | ast.Import | ast.Constant):
                continue
            names = [getattr(node, field, None) for field in ("id", "arg", "attr", "name")]
            for name in [name for name in names if isinstance(name, str) and not name.startswith("test_")]:
                assert not empty & set(name.lower().split("_")) or name in LIBRARY_NAMES, f"{path}:{node.lineno}: {name}"


def test_no_file_is_a_drawer_for_everything():
    drawers = re.compile(r"(utils?|helpers?|managers?|base|common|misc)$")
    assert not [path for path in FILES if drawers.search(path.stem)]


def test_nothing_is_left_behind():
    """No notes to self, no switches for what nobody runs."""
    notes = re.compile(r"\b(T[O]DO|F[I]XME|X[X]X|H[A]CK)\b")  # written so that it does not find itself: tests are searched too
    for path in [*FILES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "launch").rglob("*.sh"), *(ROOT / "configs").glob("*.yaml")]:
        assert not notes.search((ROOT / path).read_text()), path
