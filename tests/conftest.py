"""What tests share: made photographs, shards of them, tiny recipes, and doors opened in a process of their own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from photographs import made_photo
from PIL import Image

ROOT = Path(__file__).parent.parent
CLASSES = ("boats", "cats", "dunes")
SCALE = 2

os.environ.setdefault("OMP_NUM_THREADS", "2")
settings.register_profile(
    "house", deadline=None, derandomize=True, database=None, max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
settings.load_profile("house")


def encoded(picture: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format=kind, **options)
    return file.getvalue()


@pytest.fixture(scope="session")
def picture() -> Callable[..., np.ndarray]:
    return made_photo


@pytest.fixture(scope="session")
def image_bytes() -> Callable[..., bytes]:
    return encoded


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images of 32 to 48 pixels in three classes; every third is a JPEG. Only read it."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(24):
        folder = root / CLASSES[number % 3]
        folder.mkdir(exist_ok=True)
        picture = made_photo(number, 32 + number % 5 * 4, 48 - number % 4 * 4)
        kind, suffix = ("JPEG", "jpg") if number % 9 < 3 else ("PNG", "png")
        (folder / f"{number:02d}.{suffix}").write_bytes(encoded(picture, kind, **({"quality": 95} if kind == "JPEG" else {})))
    return root


@pytest.fixture(scope="session")
def photo_shards(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those images in three shards of eight. Only read it; `shutil.copytree` what is to be damaged."""
    from shards.build import build

    out = tmp_path_factory.mktemp("shards") / "photos"
    build("class_folders", str(photos), out, {"per_shard": "8"})
    return out


RECIPE: dict[str, Any] = {
    "name": "tiny",
    "scale": SCALE,
    "steps": 4,
    "data": {"crop": 16, "batch": 4, "workers": 0},
    "generator": {"name": "srugan", "widths": [8, 8], "num_blocks": 1, "num_dense_blocks": 1, "reduction": 2},
    "objective": {"name": "pixel", "content": {"l1": 1.0}},
    "optimizer": {"name": "adam", "learning_rate": 1e-3},
    "validate_every": 2,
    "save_every": 2,
    "log_every": 1,
}


@pytest.fixture
def write_recipe(tmp_path: Path, photo_shards: Path) -> Callable[..., Path]:
    """`write_recipe(steps=2, data={"batch": 8})` -> the path of a complete tiny recipe; sections are merged, None leaves out."""
    import yaml

    def write(filename: str = "tiny.yaml", **changes: Any) -> Path:
        tree: dict[str, Any] = {**RECIPE, "runs": str(tmp_path / "runs")}
        tree["data"] = {"train": str(photo_shards), **tree["data"]}
        for key, value in changes.items():
            tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) else value
        path = tmp_path / filename
        path.write_text(yaml.safe_dump({k: v for k, v in tree.items() if v is not None}, sort_keys=False), encoding="utf-8")
        return path

    return write


@dataclass(frozen=True)
class Answer:
    """What a door did: its exit code, its two outputs, and the heavy packages that were loaded by then."""

    code: int
    out: str
    err: str
    heavy: tuple[str, ...]


_OPEN_DOORS = """
import contextlib, importlib, io, json, sys, traceback
HEAVY = ("torch", "torchvision", "webdataset", "deepspeed", "accelerate", "wandb")
answers = []
for module, words in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = importlib.import_module(module).main(words)
        except SystemExit as end:
            code = end.code
        except Exception:
            code = 1
            traceback.print_exc()
    answers.append([code, out.getvalue(), err.getvalue(), [name for name in HEAVY if name in sys.modules]])
print(json.dumps(answers))
"""


@pytest.fixture(scope="session")
def open_doors() -> Callable[[Sequence[tuple[str, list[str]]]], list[Answer]]:
    """Runs doors one after another in one fresh process: [(module, words)] -> their answers."""

    def run(calls: Sequence[tuple[str, list[str]]]) -> list[Answer]:
        done = subprocess.run(
            [sys.executable, "-c", _OPEN_DOORS], input=json.dumps(calls), capture_output=True, text=True, cwd=ROOT, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return [Answer(code, out, err, tuple(heavy)) for code, out, err, heavy in json.loads(done.stdout.splitlines()[-1])]

    return run
