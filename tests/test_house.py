"""The rules of the house, read from the syntax trees: who imports whom, one home per library, no shared drawers."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path.relative_to(ROOT) for package in ("sr_dist", "shards") for path in (ROOT / package).rglob("*.py"))

# Rooms from the top of the house to the ground; a file imports its own room's and lower ones'.
ROOMS = ("doors", "engine", "objectives", "eval", "data", "losses", "models", "leaves")
BELOW = {
    "doors": {"engine", "eval", "data", "models", "leaves"},
    "engine": {"objectives", "eval", "data", "losses", "models", "leaves"},
    "objectives": {"losses", "leaves"},
    "eval": {"data", "losses", "leaves"},
    "data": {"leaves"},
    "losses": {"models", "leaves"},  # frozen classifiers: models/weights.py opens them, and reads files only
    "models": {"leaves"},
    "leaves": set(),
}
LEAVES = {
    "batch",
    "config",
    "plugins",
    "errors",
    "resize",
    "ranks",
    "children",
    "door",
    "files",
    "pretrained",
    "sections",
    "recipe",
    "resumption",
    "commands",
    "labels",
    "__init__",
}
FORMAT = "sr_dist.data.format"  # torch-free, as what is in PURE; recipes and shards read manifests through it
PURE = {FORMAT, "sr_dist.data.order", "sr_dist.data.remote.cache", "sr_dist.data.remote.sources", "sr_dist.data.select"}

HOMES = {
    "accelerate": ("sr_dist/engine/",),
    "deepspeed": ("sr_dist/engine/",),
    "wandb": ("sr_dist/training/trackers/wandb.py",),
    "wandb_workspaces": ("sr_dist/tools/dashboard.py",),
    "matplotlib": ("sr_dist/tools/plot.py",),
    "tqdm": ("sr_dist/training/terminal.py", "shards/work.py"),
    "webdataset": ("sr_dist/data/", "shards/"),
    "torchmetrics": ("sr_dist/eval/metrics/",),
    "cleanfid": ("sr_dist/evaluation/distances/extractor.py", "sr_dist/tools/distance_speed.py"),
    "lpips": ("sr_dist/eval/metrics/", "sr_dist/losses/content/"),
    "fire": ("sr_dist/core/cli.py",),
    "yaml": ("sr_dist/core/config.py",),
    "torch.distributed": ("sr_dist/core/ranks.py",),
    "onnxruntime": ("sr_dist/models/export.py",),
    "skimage": ("shards/sources/",),
}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at the top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module != "__future__":
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in inside if _is_module(name)} or {node.module}
    return found


def _is_module(name: str) -> bool:
    place = ROOT.joinpath(*name.split("."))
    return name.startswith(("sr_dist", "shards")) and (place.with_suffix(".py").exists() or place.is_dir())


def room(module: str) -> str:
    parts = module.split(".")
    if len(parts) > 1 and parts[1] in ROOMS:
        return parts[1]
    return "leaves" if parts[-1] in LEAVES or len(parts) == 1 else "doors"


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] == "sr_dist"], ids=str)
def test_imports_go_down_only(path):
    here = room(".".join(path.with_suffix("").parts))
    for module in imports(path):
        assert not module.startswith("shards"), f"{path} imports {module}; the library does not know the tool"
        if module.startswith("sr_dist") and module not in PURE:
            there = room(module)
            assert there == here or there in BELOW[here], f"{path} ({here}) imports {module} ({there})"


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] == "shards"], ids=str)
def test_shards_need_only_the_format_and_leaves(path):
    for module in imports(path):
        if module.startswith("sr_dist"):
            assert module in PURE or room(module) == "leaves", f"{path} imports {module}"
        assert not module.startswith("torch"), f"{path} imports {module}: shards are built on machines without torch"


@pytest.mark.parametrize("library", HOMES)
def test_every_library_has_one_home(library):
    for path in FILES:
        if any(module == library or module.startswith(f"{library}.") for module in imports(path)):
            assert str(path).startswith(HOMES[library]), f"{path} imports {library}"


def test_doors_import_no_torch_before_they_work():
    for path in FILES:
        if "cli.run(main)" in (ROOT / path).read_text():
            tree = ast.parse((ROOT / path).read_text())
            top = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
            top |= {node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)}
            assert not {name for name in top if name.split(".")[0] in ("torch", "torchvision", "accelerate", "webdataset")}, path


def test_plugin_folders_have_empty_inits():
    for path in FILES:
        if path.name == "__init__.py" and path.parts != ("sr_dist", "__init__.py"):
            assert not (ROOT / path).read_text().strip(), f"{path}: a new part must not need a line in it"


def test_no_file_is_a_drawer_for_everything():
    drawers = re.compile(r"(utils?|helpers?|managers?|base|common|misc)$")
    assert not [path for path in FILES if drawers.search(path.stem)]


def test_nothing_is_left_behind():
    """No notes to self, no switches for what nobody runs."""
    notes = re.compile(r"\b(T[O]DO|F[I]XME|X[X]X|H[A]CK)\b")  # written so that it does not find itself: tests are searched too
    for path in [*FILES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "launch").rglob("*.sh"), *(ROOT / "configs").glob("*.yaml")]:
        assert not notes.search((ROOT / path).read_text()), path
