"""The scripts of launch/slurm on a real SLURM of two nodes: ended, pre-empted, cancelled, failing, with a node lost."""

from __future__ import annotations

import json
import signal
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from processes import assert_exactly_once, last_step, losses, small_gan
from safetensors.torch import load_file

SAMPLES, BATCH, STEPS = 24, 8, 30
pytestmark = pytest.mark.slow


def words(shards: Path, runs: Path, name: str, **more: object) -> list[str]:
    own = {"name": name, "steps": STEPS, "data.batch": BATCH, "data.workers": 1, "save_every": 4, "log.wandb": "offline"}
    return small_gan(shards, runs, **{**own, **more})


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def undisturbed(slurm, photo_shards, runs) -> int:
    """The job of a whole run on two nodes, `runs/whole`."""
    number = slurm.submit("train.sbatch", *words(photo_shards, runs, "whole"), options=["--nodes=2"])
    slurm.ended(number)
    return number


def in_mid_run(slurm, number: int, folder: Path) -> None:
    """Waits until the run is on its way, and stops its processes there, so that what comes next comes in mid-run."""

    def on_its_way() -> bool:
        assert slurm.job(number)["JobState"] in ("PENDING", "CONFIGURING", "RUNNING"), slurm.log(number)
        return last_step(folder) >= 6

    slurm.wait(on_its_way, f"step 6 of {folder.name}")
    send(slurm, number, signal.SIGSTOP)
    assert last_step(folder) < STEPS, "too late: the run is over"


def send(slurm, number: int, what: int) -> None:
    for task in slurm.tasks(number):
        with suppress(psutil.NoSuchProcess):
            task.send_signal(what)


def test_two_nodes_train_to_the_end(slurm, undisturbed, runs):
    known, log = slurm.job(undisturbed), slurm.log(undisturbed)
    assert (known["JobState"], known["ExitCode"], known["Restarts"]) == ("COMPLETED", "0:0", "0"), log
    assert known["NumNodes"] == "2"
    assert (runs / "whole" / "DONE").read_text() == f"step {STEPS}\n"
    assert json.loads((runs / "whole" / "environment.json").read_text())["ranks"] == 2
    assert_exactly_once(runs / "whole", SAMPLES, BATCH, STEPS)


def test_out_of_time_the_job_goes_back_to_the_queue_and_ends_as_if_nothing_had_happened(slurm, undisturbed, photo_shards, runs):
    folder = runs / "requeued"
    number = slurm.submit("train.sbatch", *words(photo_shards, runs, "requeued"), options=["--nodes=2"])
    in_mid_run(slurm, number, folder)
    slurm.ask("scancel", "--batch", "--signal=USR1", str(number))  # what SLURM sends 180 s before the end
    slurm.wait((folder / "STOP").exists, "the file STOP")
    send(slurm, number, signal.SIGCONT)
    slurm.wait(lambda: slurm.job(number)["Restarts"] == "1", "the requeue")
    assert (folder / "PREEMPTED").exists()
    known, log = slurm.ended(number), slurm.log(number)
    assert (known["JobState"], known["ExitCode"], known["Restarts"]) == ("COMPLETED", "0:0", "1"), log
    assert (folder / "DONE").exists()
    assert "time is up" in log, "the second attempt must not overwrite what the first has said"
    assert "continuing after step" in log
    assert_exactly_once(folder, SAMPLES, BATCH, STEPS)
    assert_same_bits(folder, runs / "whole")
    (wandb_id,) = {path.name.rsplit("-", 1)[1] for path in folder.glob("wandb/offline-run-*")}
    assert wandb_id == (folder / "wandb_id").read_text().strip()
    assert len(list(folder.glob("wandb/offline-run-*"))) == 2


def test_out_of_time_under_zero(slurm, undisturbed, photo_shards, runs):
    """ZeRO-2 on two nodes; the losses are those of DDP."""
    folder, zero = runs / "zero", {"SR_DIST_ACCELERATE": "launch/accelerate/zero2.yaml"}
    number = slurm.submit("train.sbatch", *words(photo_shards, runs, "zero", log__wandb="off"), options=["--nodes=2"], **zero)
    in_mid_run(slurm, number, folder)
    slurm.ask("scancel", "--batch", "--signal=USR1", str(number))
    slurm.wait((folder / "STOP").exists, "the file STOP")
    send(slurm, number, signal.SIGCONT)
    known, log = slurm.ended(number), slurm.log(number)
    assert (known["JobState"], known["ExitCode"], known["Restarts"]) == ("COMPLETED", "0:0", "1"), log
    assert_exactly_once(folder, SAMPLES, BATCH, STEPS)
    for ours, theirs in zip(losses(folder), losses(runs / "whole"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def assert_same_bits(folder: Path, other: Path) -> None:
    assert losses(folder) == losses(other)
    for name in ("generator", "generator.ema", "discriminator"):
        ours, theirs = (load_file(run / "checkpoints" / f"{STEPS:07d}" / f"{name}.safetensors") for run in (folder, other))
        assert all(ours[key].equal(theirs[key]) for key in theirs), name


def test_cancelled_is_saved_and_not_requeued(slurm, photo_shards, runs):
    """On one node with two GPUs, which here are files that only look like GPUs to SLURM."""
    folder = runs / "cancelled"
    number = slurm.submit(
        "train.sbatch", *words(photo_shards, runs, "cancelled"), options=["--gres=gpu:2"], ACCELERATE_USE_CPU="true"
    )
    in_mid_run(slurm, number, folder)
    assert json.loads((folder / "environment.json").read_text())["ranks"] == 2, "a rank for each GPU"
    slurm.ask("scancel", str(number))  # continues what is stopped, too
    known = slurm.ended(number)
    assert (known["JobState"], known["Restarts"]) == ("CANCELLED", "0"), slurm.log(number)
    slurm.wait(slurm.idle, "idle nodes after the cancelled job")
    assert (folder / "PREEMPTED").exists(), slurm.log(number)
    assert not (folder / "DONE").exists()
    step = int((folder / "PREEMPTED").read_text().split()[1])
    assert (folder / "checkpoints" / f"{step:07d}" / "manifest.json").exists()


def test_a_mistake_in_the_recipe_ends_the_job_with_its_exit_code(slurm, photo_shards, runs):
    number = slurm.submit("train.sbatch", *words(photo_shards, runs, "mistaken", stepz=3))
    known = slurm.ended(number)
    assert (known["JobState"], known["ExitCode"], known["Restarts"]) == ("FAILED", "2:0", "0")
    assert "error: stepz" in slurm.log(number)


def test_a_failure_in_mid_run_is_not_requeued(slurm, photo_shards, runs):
    diverging = {"optimizer.learning_rate": 1e30, "max_skipped": 3, "log.wandb": "off"}
    number = slurm.submit("train.sbatch", *words(photo_shards, runs, "diverging", **diverging))
    known = slurm.ended(number)
    assert (known["JobState"], known["ExitCode"], known["Restarts"]) == ("FAILED", "1:0", "0"), slurm.log(number)
    assert "were not finite for" in slurm.log(number)
    assert not (runs / "diverging" / "PREEMPTED").exists()


def test_a_lost_node_ends_the_job_and_when_it_is_back_the_run_goes_on(slurm, photo_shards, runs):
    """SLURM itself puts a job that lost a node back into the queue."""
    folder = runs / "lost"
    number = slurm.submit("train.sbatch", *words(photo_shards, runs, "lost", log__wandb="off"), options=["--nodes=2"])
    in_mid_run(slurm, number, folder)
    slurm.stop_node("n1")
    try:
        send(slurm, number, signal.SIGCONT)
        slurm.wait(lambda: slurm.job(number)["JobState"] != "RUNNING", "the end of the job that lost a node")
        slurm.wait(lambda: not slurm.tasks(number), "the end of what the job ran on the other node")
    finally:
        slurm.start_node("n1")
    assert not (folder / "DONE").exists()
    assert not (folder / "PREEMPTED").exists()
    known = slurm.ended(number)
    assert (known["JobState"], known["Restarts"]) == ("COMPLETED", "1"), slurm.log(number)
    assert_exactly_once(folder, SAMPLES, BATCH, STEPS)
