"""Fixtures that all tests share: synthetic photographs, shards of them, tiny recipes, and commands in another process."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
from hypothesis import HealthCheck, settings
from photographs import made_photo
from PIL import Image

ROOT = Path(__file__).parent.parent
CLASSES = ("boats", "cats", "dunes")
SCALE = 2

os.environ.setdefault("OMP_NUM_THREADS", "1")  # with more, threads that share a core spin: 0.4 s of training become 40 s
settings.register_profile(
    "house", deadline=None, derandomize=True, database=None, max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
settings.load_profile("house")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Under xdist's `--dist loadgroup` the tests of a file stay in one process, for they share fixtures; tests/slurm has one
    cluster, and so all its files do."""
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            folder = item.path.parent.name
            item.add_marker(pytest.mark.xdist_group("slurm" if folder == "slurm" else str(item.path)))


# What .ci/run does not install (a metric package that is no dependency), and what a machine may forbid.
MAY_SKIP = ("could not import 'pyiqa'", "mounting ", "only root ")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    return nothing_is_skipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    return nothing_is_skipped((yield))


def nothing_is_skipped(report):
    """Under .ci/run, which installs what the tests need, a skipped test fails: it would check nothing and be green."""
    if report.skipped and "SR_DIST_ALL_TESTS" in os.environ and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not reason.startswith(MAY_SKIP):
            report.outcome, report.longrepr = "failed", f"skipped under SR_DIST_ALL_TESTS: {reason}"
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Random numbers of torch do not depend on the tests before. Tests that do not load torch are spared its seconds."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


def encoded(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=kind, **options)
    return file.getvalue()


@pytest.fixture(scope="session")
def make_photo() -> Callable[..., np.ndarray]:
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
        pixels = made_photo(number, 32 + number % 5 * 4, 48 - number % 4 * 4)
        kind, suffix = ("JPEG", "jpg") if number % 9 < 3 else ("PNG", "png")
        (folder / f"{number:02d}.{suffix}").write_bytes(encoded(pixels, kind, **({"quality": 95} if kind == "JPEG" else {})))
    return root


@pytest.fixture(scope="session")
def photo_shards(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those images in three shards of eight. Only read it; damage a copy."""
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
    """The result of a command: its exit code, its output, and the heavy packages that were loaded by then."""

    code: int
    out: str
    err: str
    heavy: tuple[str, ...]


Calls = Sequence[tuple[str, list[str]]]


def answers(out: str) -> list[Answer]:
    return [Answer(code, out, err, tuple(heavy)) for code, out, err, heavy in json.loads(out.splitlines()[-1])]


@pytest.fixture(scope="session")
def run_commands() -> Callable[[Calls], list[Answer]]:
    """Runs commands one after the other in one forked process: [(module, arguments)] -> their answers."""

    def run(calls: Calls) -> list[Answer]:
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        return answers(processes.run(0, "run_commands", json.dumps(calls), PYTHONPATH=path)[0])

    return run


@pytest.fixture(scope="session")
def run_fresh() -> Callable[[Calls], list[Answer]]:
    """The same in a fresh process, which shows the packages that the commands load: `Answer.heavy`."""

    def run(calls: Calls) -> list[Answer]:
        line = [sys.executable, str(ROOT / "tests" / "run_commands.py"), json.dumps(calls)]
        return answers(processes.finish_with(0, processes.popen(line))[0])

    return run


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a screen, which logs what pages print and request."""
    pytest.importorskip("selenium", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("chromium or chromedriver is not installed")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,1600"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield opened
    opened.quit()
