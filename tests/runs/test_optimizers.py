"""A checkpoint of each optimizer continues under another backend: one process, two ranks, ZeRO 1, 2, 3, and back."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_equality import distance, job, train

from sr_dist.tools.prove_results import loss_difference, result_of

STEPS, HALF = 4, 2
SETTINGS = {
    "adam": "{name: adam, learning_rate: 1e-3}",
    "adamw": "{name: adamw, learning_rate: 1e-3, weight_decay: 0.1}",
    "sgd": "{name: sgd, learning_rate: 0.1, momentum: 0.9}",
    "own": "{name: training.counted_momentum, learning_rate: 0.1}",  # a file outside the package; it keeps Python numbers
}
ZERO = [pytest.param(backend, marks=pytest.mark.slow) for backend in ("zero1", "zero2", "zero3")]


def training(shards: Path, runs: Path, name: str, steps: int, start: Path | None = None) -> dict:
    """`start`: continues a copy of the first half in this folder."""
    work = job(shards, runs, "srgan", 1, "adam")
    folder = f"{name}-{steps}" + (f"-{start.name}" if start else "")
    work["options"] |= {"name": folder, "optimizer": SETTINGS[name], "steps": str(steps)}
    return work | ({"continues": str(start / f"{name}-{HALF}")} if start else {})


@pytest.fixture(scope="module")
def launched(photo_shards, tmp_path_factory):
    """Runs trainings of every optimizer under a backend: `launched(backend, (steps, start), ...)` -> the folder of the runs."""
    root = tmp_path_factory.mktemp("optimizers")

    def launch(backend: str, *lengths: tuple[int, Path | None]) -> Path:
        folder = root / backend.replace(" ", "_")
        folder.mkdir(exist_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
            train(backend, folder, [training(photo_shards, folder, name, *length) for name in SETTINGS for length in lengths])
        return folder

    return launch


@pytest.fixture(scope="module")
def one_process(launched) -> Path:
    """Whole trainings and first halves."""
    return launched("one process", (STEPS, None), (HALF, None))


@pytest.fixture(scope="module")
def ddp(launched, one_process) -> Path:
    return launched("ddp", (HALF, None), (STEPS, one_process))


def check(runs: Path, start: Path, whole: Path) -> None:
    """What is loaded has the bits of what was saved; losses and weights after it are those of a run without a stop."""
    for name in SETTINGS:
        run, reference = runs / f"{name}-{STEPS}-{start.name}", whole / f"{name}-{STEPS}"
        assert result_of(run).state == []
        assert loss_difference(run, reference) <= 1e-5, name
        change = distance(whole / f"{name}-{HALF}", reference)
        assert change >= 1e-4
        if not name.startswith("adam"):  # it divides by the size of a gradient, which turns rounding near 0 into whole steps
            assert distance(run, reference) <= 1e-4 * change, name


def test_one_process_and_two_ranks_continue_each_other(launched, one_process, ddp):
    launched("one process", (STEPS, ddp))
    check(ddp, one_process, one_process)
    check(one_process, ddp, one_process)


@pytest.mark.parametrize("backend", ZERO)
def test_zero_and_two_ranks_continue_each_other(backend, launched, one_process, ddp):
    zero = launched(backend, (HALF, None), (STEPS, ddp))
    launched("ddp", (STEPS, zero))
    check(zero, ddp, one_process)
    check(ddp, zero, one_process)
