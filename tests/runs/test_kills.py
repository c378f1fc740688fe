"""Runs that are really killed, at every kind of moment, and end as if nothing had happened.

Each case ends with the exactly-once trace and, for one and two ranks, with the bits of a run that was never disturbed.
"""

from __future__ import annotations

import random
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from killed_in_save import STAGES
from processes import (
    ROOT,
    assert_exactly_once,
    environment,
    finish,
    kill,
    last_step,
    losses,
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
    """A whole run on one rank, and one on two, each made when it is first asked for."""
    made: dict[int, Path] = {}

    def of(ranks: int) -> Path:
        if ranks not in made:
            made[ranks] = tmp_path_factory.mktemp(f"undisturbed{ranks}")
            run(ranks if ranks > 1 else 0, "sr_dist.train", *words(photo_shards, made[ranks]))
        return made[ranks] / "run"

    return of


def assert_same_bits(run_folder: Path, other: Path) -> None:
    assert losses(run_folder) == losses(other)
    for name in ("generator", "generator.ema", "generator.optimizer", "discriminator", "discriminator.optimizer"):
        ours, theirs = (
            load_file(folder / "checkpoints" / f"{STEPS:07d}" / f"{name}.safetensors") for folder in (run_folder, other)
        )
        assert ours.keys() == theirs.keys()
        assert all(ours[key].equal(theirs[key]) for key in ours), name


def frozen_at(process: subprocess.Popen, folder: Path, step: int) -> None:
    """Waits for a step and stops every process there, so that what comes next comes in mid-run."""
    wait_for(lambda: last_step(folder) >= step, process)
    kill(process, signal.SIGSTOP)
    assert last_step(folder) < STEPS, "too late: the run is over"


MOMENTS = {  # ranks, who gets which signal, whether the run has time to save
    "one process, SIGKILL": (1, "all", signal.SIGKILL),
    "one process, SIGTERM": (1, "all", signal.SIGTERM),
    "one process, SIGINT": (1, "all", signal.SIGINT),
    "one process, SIGUSR1": (1, "all", signal.SIGUSR1),
    "two ranks, SIGKILL of all": (2, "all", signal.SIGKILL),
    "two ranks, SIGKILL of the first": (2, 0, signal.SIGKILL),
    "two ranks, SIGKILL of the second": (2, 1, signal.SIGKILL),
    "two ranks, SIGTERM to the second": (2, 1, signal.SIGTERM),
    "two ranks, SIGUSR1 to the first": (2, 0, signal.SIGUSR1),
    "two ranks, SIGTERM to the launcher": (2, "launcher", signal.SIGTERM),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_in_mid_run(moment, photo_shards, tmp_path, undisturbed):
    """At a random step; another number of loading processes continues."""
    ranks, whom, number = MOMENTS[moment]
    folder, command = tmp_path / "run", words(photo_shards, tmp_path)
    process = start(ranks if ranks > 1 else 0, "sr_dist.train", *command)
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
    code, _, complaints = finish(process)
    if number != signal.SIGKILL:
        assert (folder / "PREEMPTED").exists(), complaints[-2000:]
        assert code == 0 or whom == "launcher"  # a launcher that was told to end says 1, whatever its ranks did
    else:
        assert code != 0
        assert not (folder / "PREEMPTED").exists()
    assert not (folder / "DONE").exists()
    run(ranks if ranks > 1 else 0, "sr_dist.train", *words(photo_shards, tmp_path, data__workers=random.randint(1, 2)))
    assert (folder / "DONE").exists()
    assert_exactly_once(folder, SAMPLES, BATCH, STEPS)
    assert_same_bits(folder, undisturbed(ranks))


@pytest.mark.parametrize("stage", STAGES)
def test_killed_while_a_checkpoint_is_written(stage, photo_shards, tmp_path, undisturbed):
    folder, command = tmp_path / "run", words(photo_shards, tmp_path)
    script = [sys.executable, str(Path(__file__).with_name("killed_in_save.py")), stage, "16", *command]
    answer = subprocess.run(script, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert answer.returncode == -signal.SIGKILL, answer.stderr[-2000:]
    out, _ = run(0, "sr_dist.train", *command)
    assert f"continuing after step {16 if stage in ('after rename', 'while pruning') else 12}" in out
    assert not list((folder / "checkpoints").glob(".*"))
    assert_exactly_once(folder, SAMPLES, BATCH, STEPS)
    assert_same_bits(folder, undisturbed(1))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "without a manifest", "without a file"])
def test_damaged_newest_checkpoint(damage, photo_shards, tmp_path, undisturbed):
    folder = tmp_path / "run"
    run(0, "sr_dist.train", *words(photo_shards, tmp_path, steps=12))
    newest = folder / "checkpoints" / "0000012"
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
    assert_exactly_once(folder, SAMPLES, BATCH, STEPS)
    assert_same_bits(folder, undisturbed(1))


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
    """2 ranks, then 1, then 3, each with another number of loading processes, killed at random steps."""
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

    def configured(stage: int) -> subprocess.Popen:
        launcher = [
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            str(ROOT / "launch" / "accelerate" / f"zero{stage}.yaml"),
        ]
        launcher += ["--num_processes", "2", "--main_process_port", "0", "-m", "sr_dist.train"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        return subprocess.Popen([sys.executable, *launcher, *command], env=environment(DS_ACCELERATOR="cpu"), cwd=ROOT, **pipes)

    for stage, step in ((2, 6), (3, 13)):
        process = configured(stage)
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


def limited(command: list[str], largest: int) -> subprocess.CompletedProcess:
    """The training in a process that may write no file larger than so many bytes, as on a disk that is full."""
    return subprocess.run(
        [sys.executable, "-m", "sr_dist.train", *command], env=environment(), cwd=ROOT, capture_output=True, text=True,
        timeout=300, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest)),
    )  # fmt: skip


def test_full_disk_keeps_the_last_good_checkpoint(photo_shards, tmp_path, undisturbed):
    folder = tmp_path / "run"
    run(0, "sr_dist.train", *words(photo_shards, tmp_path, steps=8))
    answer = limited(words(photo_shards, tmp_path), 60_000)
    assert answer.returncode == 1
    assert "the checkpoint could not be written (" in answer.stdout
    assert not (folder / "DONE").exists()
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["0000004", "0000008"]
    going_on = limited(words(photo_shards, tmp_path, on_save_error="continue"), 60_000)
    assert going_on.stdout.count("the checkpoint could not be written (") > 3
    assert going_on.returncode == 1, "a run whose last weights are nowhere is not done"
    assert not (folder / "DONE").exists()
    run(0, "sr_dist.train", *words(photo_shards, tmp_path))
    assert_exactly_once(folder, SAMPLES, BATCH, STEPS)
    assert_same_bits(folder, undisturbed(1))


def test_loading_process_that_dies_is_an_error_that_names_the_sample(photo_shards, tmp_path):
    import psutil

    folder, command = tmp_path / "run", words(photo_shards, tmp_path, data__workers=1, steps=2000, save_every="none")
    process = start(0, "sr_dist.train", *command)
    wait_for(lambda: last_step(folder) >= 3, process)
    for worker in psutil.Process(process.pid).children():
        worker.kill()
    code, _, complaints = finish(process)
    assert code == 1
    assert "a loading process died" in complaints
    assert re.search(r"while samples of the steps \d+ to \d+ were read: '\w+/", complaints)


def test_rank_that_hangs_ends_the_job_with_a_stack_dump(photo_shards, tmp_path):
    folder, command = tmp_path / "run", words(photo_shards, tmp_path, steps=100_000, save_every="none", hang_timeout=6)
    process = start(2, "sr_dist.train", *command)
    wait_for(lambda: last_step(folder) >= 3, process)
    trainers(process)[1].send_signal(signal.SIGSTOP)
    code, _, complaints = finish(process)
    assert code != 0
    assert "rank 0 made no progress for 6 s: " in complaints
    assert "rank-001: last seen" in complaints
    assert "take_step" in complaints
    shutil.rmtree(folder)
