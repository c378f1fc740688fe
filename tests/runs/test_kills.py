"""Runs that are really killed, at every kind of moment, and end as if nothing had happened.

Each case ends with the exactly-once trace and, for one and two ranks, with the bits of a run that was never disturbed.
"""

from __future__ import annotations

import random
import re
import shutil
import signal
import sys
from functools import cache
from pathlib import Path

import pytest
from killed_in_save import STAGES
from processes import (
    ROOT,
    Process,
    assert_exactly_once,
    finish,
    finish_with,
    kill,
    last_step,
    launch,
    losses,
    popen,
    run,
    small_gan,
    start,
    trainers,
    wait_for,
)
from safetensors.torch import load_file

SAMPLES, BATCH, STEPS = 24, 8, 30
pytestmark = pytest.mark.slow


def words(shards: Path, runs: Path, **more: object) -> list[str]:
    return small_gan(shards, runs, **{"steps": STEPS, "data.batch": BATCH, "save_every": 4, **more})


@pytest.fixture(scope="module")
def undisturbed(photo_shards, tmp_path_factory):
    """A whole run on one rank, and one on two, each made when a test first needs it."""

    @cache
    def of(ranks: int) -> Path:
        runs = tmp_path_factory.mktemp(f"undisturbed{ranks}")
        run(ranks, "sr_dist.train", *words(photo_shards, runs))
        return runs / "run"

    return of


@pytest.fixture(scope="module")
def twelve_steps(photo_shards, tmp_path_factory) -> Path:
    runs = tmp_path_factory.mktemp("twelve_steps")
    run(0, "sr_dist.train", *words(photo_shards, runs, steps=12))
    return runs / "run"


@pytest.fixture
def begun(twelve_steps, tmp_path) -> Path:
    """A run folder of twelve steps on one rank, with checkpoints 8 and 12, to damage and to continue."""
    return shutil.copytree(twelve_steps, tmp_path / "run")


def assert_same_bits(run_folder: Path, other: Path) -> None:
    assert losses(run_folder) == losses(other)
    for name in ("generator", "generator.ema", "generator.optimizer", "discriminator", "discriminator.optimizer"):
        ours, theirs = (
            load_file(folder / "checkpoints" / f"{STEPS:07d}" / f"{name}.safetensors") for folder in (run_folder, other)
        )
        assert ours.keys() == theirs.keys()
        assert all(ours[key].equal(theirs[key]) for key in ours), name


def frozen_at(process: Process, folder: Path, step: int) -> None:
    """Waits for a step and stops every process there, so that what comes next comes in mid-run."""
    wait_for(lambda: last_step(folder) >= step, process)
    kill(process, signal.SIGSTOP)
    assert last_step(folder) < STEPS, "too late: the run is over"


MOMENTS = {  # how it is started, on how many ranks, who gets which signal
    "one process, SIGKILL": (start, 1, "all", signal.SIGKILL),
    "one process, SIGTERM": (start, 1, "all", signal.SIGTERM),
    "one process, SIGINT": (start, 1, "all", signal.SIGINT),
    "one process, SIGUSR1": (start, 1, "all", signal.SIGUSR1),
    "two ranks, SIGKILL of all": (start, 2, "all", signal.SIGKILL),
    "two ranks, SIGKILL of the first": (start, 2, 0, signal.SIGKILL),
    "two ranks, SIGKILL of the second": (launch, 2, 1, signal.SIGKILL),
    "two ranks, SIGTERM to the second": (start, 2, 1, signal.SIGTERM),
    "two ranks, SIGUSR1 to the first": (start, 2, 0, signal.SIGUSR1),
    "two ranks, SIGTERM to the launcher": (launch, 2, "launcher", signal.SIGTERM),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_in_mid_run(moment, photo_shards, tmp_path, undisturbed):
    """At a random step; another number of loader workers continues."""
    begin, ranks, whom, number = MOMENTS[moment]
    folder, command = tmp_path / "run", words(photo_shards, tmp_path)
    process = begin(ranks, "sr_dist.train", *command)
    step = random.randint(5, STEPS - 10)
    print("killed at step", step)
    frozen_at(process, folder, step)
    if whom == "all":
        kill(process, number)
    elif whom == "launcher":
        process.send_signal(number)
    else:
        trainers(process)[whom].send_signal(number)
    kill(process, signal.SIGCONT)
    code, _, err = finish(process)
    if number != signal.SIGKILL:
        assert (folder / "PREEMPTED").exists(), err[-2000:]
        assert code == 0 or whom == "launcher"  # a launcher that got a signal returns 1, whatever its ranks return
    else:
        assert code != 0
        assert not (folder / "PREEMPTED").exists()
    assert not (folder / "DONE").exists()
    run(ranks, "sr_dist.train", *words(photo_shards, tmp_path, data__workers=random.randint(1, 2)))
    assert (folder / "DONE").exists()
    assert_exactly_once(folder, SAMPLES, BATCH, STEPS)
    assert_same_bits(folder, undisturbed(ranks))


@pytest.mark.parametrize("stage", STAGES)
def test_killed_while_a_checkpoint_is_written(stage, photo_shards, tmp_path, begun, undisturbed):
    command = words(photo_shards, tmp_path)
    finish_with(-signal.SIGKILL, start(0, "killed_in_save", stage, 16, *command, cwd=Path(__file__).parent))
    out, _ = run(0, "sr_dist.train", *command)
    assert f"continuing after step {16 if stage in ('after rename', 'while pruning') else 12}" in out
    assert not list((begun / "checkpoints").glob(".*"))
    assert_exactly_once(begun, SAMPLES, BATCH, STEPS)
    assert_same_bits(begun, undisturbed(1))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "without a manifest", "without a file"])
def test_damaged_newest_checkpoint(damage, photo_shards, tmp_path, begun, undisturbed):
    newest = begun / "checkpoints" / "0000012"
    victim = newest / ("manifest.json" if damage == "without a manifest" else "discriminator.optimizer.safetensors")
    data = victim.read_bytes()
    if damage == "truncated":
        victim.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        victim.write_bytes(data[:-9] + bytes([data[-9] ^ 4]) + data[-8:])
    else:
        victim.unlink()
    out, _ = run(0, "sr_dist.train", *words(photo_shards, tmp_path))
    assert "checkpoint 0000012 is damaged" in out
    assert "continuing after step 8" in out
    assert_exactly_once(begun, SAMPLES, BATCH, STEPS)
    assert_same_bits(begun, undisturbed(1))


def test_killed_while_validating(photo_shards, tmp_path, undisturbed):
    """SIGKILL in the validation of step 10, SIGTERM in that of step 20, which is then made up for."""
    folder = tmp_path / "run"
    command = words(photo_shards, tmp_path, data__validation=photo_shards, validate_every=10)
    for number, step in ((signal.SIGKILL, 10), (signal.SIGTERM, 20)):
        process = start(0, "sr_dist.train", *command)
        frozen_at(process, folder, step)
        process.send_signal(number)
        kill(process, signal.SIGCONT)
        finish(process)
    assert (folder / "PREEMPTED").exists()
    run(0, "sr_dist.train", *command)
    rows = [line for line in (folder / "metrics.jsonl").read_text().splitlines() if "validation/psnr_y" in line]
    assert [line.split(",")[0] for line in rows] == ['{"step": 10', '{"step": 20', '{"step": 30']
    assert_exactly_once(folder, SAMPLES, BATCH, STEPS)
    assert_same_bits(folder, undisturbed(1))


def test_killed_and_continued_on_other_numbers_of_ranks(photo_shards, tmp_path, undisturbed):
    """2 ranks, then 1, then 3, each with another number of loader workers, killed at random steps."""
    folder, first = tmp_path / "run", random.randint(5, 9)
    for workers, (ranks, step) in enumerate(((2, first), (0, first + random.randint(5, 9)))):
        process = start(ranks, "sr_dist.train", *words(photo_shards, tmp_path, data__workers=workers))
        frozen_at(process, folder, step)
        kill(process)
        finish(process)
    run(3, "sr_dist.train", *words(photo_shards, tmp_path, data__workers=2))
    assert_exactly_once(folder, SAMPLES, BATCH, STEPS)
    for ours, theirs in zip(losses(folder), losses(undisturbed(1)), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_killed_under_zero_and_continued_under_another_backend(photo_shards, tmp_path, undisturbed):
    """ZeRO-2 on two ranks, ZeRO-3 on two, DDP on two, one process: one checkpoint layout for all."""
    folder, command = tmp_path / "run", words(photo_shards, tmp_path)

    for stage, step in ((2, 6), (3, 13)):
        config = ROOT / "launch" / "accelerate" / f"zero{stage}.yaml"
        launcher = ["-m", "accelerate.commands.launch", "--config_file", str(config), "--num_processes", "2"]
        launcher += ["--main_process_port", "0"]
        process = popen([sys.executable, *launcher, "-m", "sr_dist.train", *command], DS_ACCELERATOR="cpu")
        frozen_at(process, folder, step)
        kill(process)
        finish(process)
    process = start(2, "sr_dist.train", *command)
    frozen_at(process, folder, 22)
    kill(process)
    finish(process)
    run(0, "sr_dist.train", *command)
    assert_exactly_once(folder, SAMPLES, BATCH, STEPS)
    for ours, theirs in zip(losses(folder), losses(undisturbed(1)), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_full_disk_keeps_the_last_good_checkpoint(photo_shards, tmp_path, begun, undisturbed):
    def on_full_disk(**more: object) -> str:
        process = start(0, "full_disk", 60_000, *words(photo_shards, tmp_path, **more), cwd=Path(__file__).parent)
        return finish_with(1, process)[0]

    assert "the checkpoint could not be written (" in on_full_disk()
    assert not (begun / "DONE").exists()
    assert sorted(path.name for path in (begun / "checkpoints").iterdir()) == ["0000008", "0000012"]
    out = on_full_disk(on_save_error="continue")  # a run whose last weights are nowhere is not done
    assert out.count("the checkpoint could not be written (") > 3
    assert not (begun / "DONE").exists()
    run(0, "sr_dist.train", *words(photo_shards, tmp_path))
    assert_exactly_once(begun, SAMPLES, BATCH, STEPS)
    assert_same_bits(begun, undisturbed(1))


def test_loader_worker_that_dies_is_an_error_that_names_the_sample(photo_shards, tmp_path):
    import psutil

    folder, command = tmp_path / "run", words(photo_shards, tmp_path, data__workers=1, steps=2000, save_every="none")
    process = start(0, "sr_dist.train", *command)
    wait_for(lambda: last_step(folder) >= 3, process)
    for worker in psutil.Process(process.pid).children():
        worker.kill()
    code, _, err = finish(process)
    assert code == 1
    assert "a data worker died" in err
    assert re.search(r"while reading the samples of steps \d+ to \d+: '\w+/", err)


def test_rank_that_hangs_ends_the_job_with_a_stack_dump(photo_shards, tmp_path):
    folder, command = tmp_path / "run", words(photo_shards, tmp_path, steps=100_000, save_every="none", hang_timeout=12)
    process = start(2, "sr_dist.train", *command)
    wait_for(lambda: last_step(folder) >= 3, process)
    trainers(process)[1].send_signal(signal.SIGSTOP)
    code, _, err = finish(process)
    assert code != 0
    assert "rank 0 made no progress for 12 s: " in err
    assert "rank-001: last seen" in err
    assert " in fit" in err  # wherever the other one stood still: in a step, or between two
