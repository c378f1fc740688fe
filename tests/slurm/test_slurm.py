"""The scripts of launch/slurm on a real SLURM of two nodes: runs that finish, are preempted, cancelled, fail or lose a node."""

from __future__ import annotations

import json
import signal
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from processes import assert_exactly_once, last_step, losses, small_gan
from safetensors.torch import load_file
from wandb_records import of_kind

SAMPLES, BATCH, STEPS = 24, 8, 30
pytestmark = pytest.mark.slow


def words(shards: Path, runs: Path, name: str, **more: object) -> list[str]:
    own = {"name": name, "steps": STEPS, "data.batch": BATCH, "data.workers": 1, "save_every": 4, "log.wandb": "offline"}
    return small_gan(shards, runs, **{**own, **more})


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def uninterrupted(slurm, photo_shards, runs) -> int:
    """The job of a run that is not interrupted, on two nodes: `runs/whole`."""
    job_id = slurm.submit("train.sbatch", *words(photo_shards, runs, "whole"), options=["--nodes=2"])
    slurm.ended(job_id)
    return job_id


def in_mid_run(slurm, job_id: int, folder: Path, step: int = 6, steps: int = STEPS) -> None:
    """Waits for a step and suspends the processes of the run, so that the test acts in the middle of it."""

    def reached() -> bool:
        slurm.hurry(job_id)
        assert slurm.job(job_id)["JobState"] in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"), slurm.log(job_id)
        return last_step(folder) >= step

    slurm.wait(reached, f"step {step} of {folder.name}")
    send(slurm, job_id, signal.SIGSTOP)
    assert last_step(folder) < steps, "too late: the run is over"


def send(slurm, job_id: int, signal_number: int) -> None:
    for task in slurm.tasks(job_id):
        with suppress(psutil.NoSuchProcess):
            task.send_signal(signal_number)


def test_two_nodes_train_to_the_end(slurm, uninterrupted, runs):
    job, log = slurm.job(uninterrupted), slurm.log(uninterrupted)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("COMPLETED", "0:0", "0"), log
    assert job["NumNodes"] == "2"
    assert (runs / "whole" / "DONE").read_text() == f"step {STEPS}\n"
    assert json.loads((runs / "whole" / "environment.json").read_text())["ranks"] == 2
    assert_exactly_once(runs / "whole", SAMPLES, BATCH, STEPS)


def test_a_job_out_of_time_is_requeued_and_ends_with_the_bits_of_an_uninterrupted_run(slurm, uninterrupted, photo_shards, runs):
    folder = runs / "requeued"
    job_id = slurm.submit("train.sbatch", *words(photo_shards, runs, "requeued"), options=["--nodes=2"])
    in_mid_run(slurm, job_id, folder)
    slurm.run("scancel", "--batch", "--signal=USR1", str(job_id))  # as SLURM does 180 s before the time limit
    slurm.wait((folder / "STOP").exists, "the file STOP")
    send(slurm, job_id, signal.SIGCONT)
    slurm.wait(lambda: slurm.job(job_id)["Restarts"] == "1", "the requeue")
    assert (folder / "PREEMPTED").exists()
    job, log = slurm.ended(job_id), slurm.log(job_id)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("COMPLETED", "0:0", "1"), log
    assert (folder / "DONE").exists()
    assert "time is up" in log, "the second attempt must not overwrite the log of the first"
    assert "continuing after step" in log
    assert_exactly_once(folder, SAMPLES, BATCH, STEPS)
    assert_same_bits(folder, runs / "whole")
    (wandb_id,) = {path.name.rsplit("-", 1)[1] for path in folder.glob("wandb/offline-run-*")}
    assert wandb_id == (folder / "wandb_id").read_text().strip()
    assert len(list(folder.glob("wandb/offline-run-*"))) == 2


def test_a_job_out_of_time_is_requeued_under_zero(slurm, uninterrupted, photo_shards, runs):
    """ZeRO-2 on two nodes; the losses equal those of DDP."""
    folder, zero = runs / "zero", {"SR_DIST_ACCELERATE": "launch/accelerate/zero2.yaml"}
    job_id = slurm.submit("train.sbatch", *words(photo_shards, runs, "zero", log__wandb="off"), options=["--nodes=2"], **zero)
    in_mid_run(slurm, job_id, folder)
    slurm.run("scancel", "--batch", "--signal=USR1", str(job_id))
    slurm.wait((folder / "STOP").exists, "the file STOP")
    send(slurm, job_id, signal.SIGCONT)
    job, log = slurm.ended(job_id), slurm.log(job_id)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("COMPLETED", "0:0", "1"), log
    assert_exactly_once(folder, SAMPLES, BATCH, STEPS)
    assert "(cpu), ZeRO-2, " in (folder / "log.txt").read_text()
    for ours, theirs in zip(losses(folder), losses(runs / "whole"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def assert_same_bits(folder: Path, other: Path) -> None:
    assert losses(folder) == losses(other)
    for name in ("generator", "generator.ema", "discriminator"):
        ours, theirs = (load_file(run / "checkpoints" / f"{STEPS:07d}" / f"{name}.safetensors") for run in (folder, other))
        assert all(ours[key].equal(theirs[key]) for key in theirs), name


def test_a_cancelled_run_is_saved_and_not_requeued(slurm, photo_shards, runs):
    """On one node with two GPUs, which are ordinary device files that SLURM takes for GPUs."""
    folder = runs / "cancelled"
    job_id = slurm.submit(
        "train.sbatch", *words(photo_shards, runs, "cancelled"), options=["--gres=gpu:2"], ACCELERATE_USE_CPU="true"
    )
    in_mid_run(slurm, job_id, folder)
    assert json.loads((folder / "environment.json").read_text())["ranks"] == 2, "a rank for each GPU"
    slurm.run("scancel", str(job_id))  # also resumes suspended processes
    job = slurm.ended(job_id)
    assert (job["JobState"], job["Restarts"]) == ("CANCELLED", "0"), slurm.log(job_id)
    slurm.wait(slurm.idle, "idle nodes after the cancelled job")
    assert (folder / "PREEMPTED").exists(), slurm.log(job_id)
    assert not (folder / "DONE").exists()
    step = int((folder / "PREEMPTED").read_text().split()[1])
    assert (folder / "checkpoints" / f"{step:07d}" / "manifest.json").exists()


def test_a_mistake_in_the_recipe_ends_the_job_with_its_exit_code(slurm, photo_shards, runs):
    job_id = slurm.submit("train.sbatch", *words(photo_shards, runs, "mistaken", stepz=3))
    job = slurm.ended(job_id)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "2:0", "0")
    assert "error: stepz" in slurm.log(job_id)


def test_a_run_that_fails_is_not_requeued(slurm, photo_shards, runs):
    diverging = {"optimizer.learning_rate": 1e30, "max_skipped": 3, "log.wandb": "off"}
    job_id = slurm.submit("train.sbatch", *words(photo_shards, runs, "diverging", **diverging))
    job = slurm.ended(job_id)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "1:0", "0"), slurm.log(job_id)
    assert "were not finite for" in slurm.log(job_id)
    assert not (runs / "diverging" / "PREEMPTED").exists()
    (row,) = incidents(runs / "diverging")
    assert (row["cause"], row["requeued"]) == ("diverged", False)
    assert "not requeued: it would diverge again" in slurm.log(job_id)


def test_a_lost_node_ends_the_job_and_the_run_continues_when_it_is_back(slurm, photo_shards, runs):
    """SLURM itself requeues a job that lost a node."""
    folder = runs / "lost"
    job_id = slurm.submit("train.sbatch", *words(photo_shards, runs, "lost", log__wandb="off"), options=["--nodes=2"])
    in_mid_run(slurm, job_id, folder)
    slurm.stop_node("n1")
    try:
        send(slurm, job_id, signal.SIGCONT)
        slurm.wait(lambda: slurm.job(job_id)["JobState"] != "RUNNING", "the end of the job that lost a node")
        slurm.wait(lambda: not slurm.tasks(job_id), "the end of the job's processes on the other node")
    finally:
        slurm.start_node("n1")
    assert not (folder / "DONE").exists()
    assert not (folder / "PREEMPTED").exists()
    slurm.wait(slurm.idle, "idle nodes")
    slurm.wait(slurm.has_sent_all, "SLURM's messages to the lost node, one of which would end the next attempt on it")
    job = slurm.ended(job_id)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), slurm.log(job_id)
    assert_exactly_once(folder, SAMPLES, BATCH, STEPS)
    assert [(row["cause"], row["requeued"]) for row in incidents(folder)] == [("lost", True)]


def incidents(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "incidents.jsonl").read_text().splitlines()]


def rank_on(slurm, job_id: int, node: str) -> psutil.Process:
    """The process that trains on this node."""
    for task in slurm.tasks(job_id):
        line = " ".join(task.cmdline())
        if "-m sr_dist.train " in line and task.environ().get("SLURMD_NODENAME") == node:
            if "-m sr_dist.train " in " ".join(task.parent().cmdline()):
                continue  # a worker of its loader
            return task
    raise AssertionError(f"no rank on {node}")


def test_a_run_whose_rank_was_killed_continues_on_one_node_less(slurm, uninterrupted, photo_shards, runs):
    """--nodes=1-2 takes both nodes, then the one that did not fail; each sample comes once, and losses are as on two nodes."""
    folder = runs / "smaller"
    slurm.wait(slurm.idle, "idle nodes")
    job_id = slurm.submit("train.sbatch", *words(photo_shards, runs, "smaller"), options=["--nodes=1-2"], SR_DIST_MIN_NODES="1")
    in_mid_run(slurm, job_id, folder)
    assert json.loads((folder / "environment.json").read_text())["ranks"] == 2
    rank_on(slurm, job_id, "n1").send_signal(signal.SIGKILL)
    send(slurm, job_id, signal.SIGCONT)
    job, log = slurm.ended(job_id), slurm.log(job_id)
    assert (job["JobState"], job["ExitCode"], job["Restarts"], job["ExcNodeList"]) == ("COMPLETED", "0:0", "1", "n1"), log
    (row,) = incidents(folder)
    assert (row["cause"], row["node"], row["rank"], row["exit_code"]) == ("signal", "n1", 1, 137)
    assert row["saved_step"] >= 4 and row["step"] >= 6
    assert json.loads((folder / "environment.json").read_text())["ranks"] == 1
    assert_exactly_once(folder, SAMPLES, BATCH, STEPS)
    for ours, theirs in zip(losses(folder), losses(runs / "whole"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert [alert.title for alert in of_kind(folder, "alert") if not alert.title.endswith(": alarm")] == ["smaller failed"]
    assert len({path.name.rsplit("-", 1)[1] for path in folder.glob("wandb/offline-run-*")}) == 1
