"""When a job is continued and when it is not: the real scripts on a real SLURM, with a stand-in for Python that takes no time."""

from __future__ import annotations

import json
import re
import shlex
import socket
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def python(tmp_path) -> str:
    path = tmp_path / "python"
    stand_in = Path(__file__).with_name("stand_in.py")
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(stand_in))} "$@"\n')
    path.chmod(0o755)
    return str(path)


def attempts(folder: Path) -> list[str]:
    return (folder / "attempts").read_text().splitlines() if (folder / "attempts").exists() else []


def out_of_time(slurm, job_id: int, folder: Path, attempt: int) -> None:
    """Sends the signal that SLURM sends 180 s before the time limit of this attempt."""

    def started() -> bool:
        slurm.hurry(job_id)
        return len(attempts(folder)) >= attempt

    slurm.wait(started, f"attempt {attempt}")
    slurm.run("scancel", "--batch", "--signal=USR1", str(job_id))


def state(slurm, job_id: int | str) -> tuple[str, str]:
    job = slurm.ended(job_id)
    return job["JobState"], job["ExitCode"]


def test_a_job_is_requeued_up_to_the_limit(slurm, python, tmp_path):
    words = ["toy.yaml", f"--runs={tmp_path}", "--steps=100", "--gain=5"]
    job_id = slurm.submit("train.sbatch", *words, SR_DIST_PYTHON=python, SR_DIST_REQUEUES="2")
    for attempt in (1, 2):
        out_of_time(slurm, job_id, tmp_path, attempt)
        slurm.wait(lambda times=attempt: slurm.job(job_id)["Restarts"] == str(times), f"requeue {attempt}")
    out_of_time(slurm, job_id, tmp_path, 3)
    assert state(slurm, job_id) == ("FAILED", "1:0")
    assert len(attempts(tmp_path)) == 3
    assert "advanced from step 5 to step 10" in slurm.log(job_id)
    assert "it has been requeued 2 times" in slurm.log(job_id)


def test_ranks_meet_at_a_port_where_nobody_listens(slurm, python, tmp_path):
    words = ["toy.yaml", f"--runs={tmp_path}", "--steps=5", "--gain=5"]
    job_id = slurm.submit("train.sbatch", *words, options=["--hold"], SR_DIST_PYTHON=python)
    usual = 12000 + job_id % 4000
    with socket.create_server(("127.0.0.1", usual)):
        slurm.run("scontrol", "release", str(job_id))
        assert state(slurm, job_id) == ("COMPLETED", "0:0"), slurm.log(job_id)
    port = int(re.search(r"rendezvous at 127.0.0.1:(\d+)\n", slurm.log(job_id))[1])
    assert 0 < port - usual < 10  # the next ones may be taken, too


def test_a_job_without_progress_is_not_requeued(slurm, python, tmp_path):
    (tmp_path / "toy" / "checkpoints" / "0000040").mkdir(parents=True)
    job_id = slurm.submit("train.sbatch", "toy.yaml", f"--runs={tmp_path}", "--steps=100", "--gain=0", SR_DIST_PYTHON=python)
    out_of_time(slurm, job_id, tmp_path, 1)
    assert state(slurm, job_id) == ("FAILED", "1:0")
    assert "is still at step 40: not requeued, because this attempt made no progress" in slurm.log(job_id)
    assert slurm.job(job_id)["Restarts"] == "0"


def test_a_run_stopped_by_a_stop_file_is_not_requeued(slurm, python, tmp_path):
    job_id = slurm.submit("train.sbatch", "toy.yaml", f"--runs={tmp_path}", "--steps=100", "--gain=5", SR_DIST_PYTHON=python)
    slurm.wait((tmp_path / "toy" / "recipe.yaml").exists, "the attempt")
    (tmp_path / "toy" / "STOP").touch()
    assert state(slurm, job_id) == ("FAILED", "1:0"), "jobs that depend on the run must not start"
    assert "was stopped on request and saved at step 5" in slurm.log(job_id)


def test_a_failure_keeps_its_exit_code_after_a_preempted_attempt(slurm, python, tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "PREEMPTED").write_text("step 5\n")
    job_id = slurm.submit("train.sbatch", "toy.yaml", f"--runs={tmp_path}", "--fail=7", SR_DIST_PYTHON=python)
    assert state(slurm, job_id) == ("FAILED", "7:0")


def test_a_chain_of_jobs_continues_until_the_run_is_done(slurm, python, tmp_path):
    """Jobs of three minutes, so that SLURM itself sends the signal of the last 180 s at once."""
    words = ["toy.yaml", f"--runs={tmp_path}", "--steps=10", "--gain=5"]
    chain = slurm.submit("train_array.sbatch", *words, options=["--array=3-6%1", "--time=3"], SR_DIST_PYTHON=python)
    assert [state(slurm, f"{chain}_{task}") for task in (3, 4, 5, 6)] == [("COMPLETED", "0:0")] * 4
    assert len(attempts(tmp_path)) == 2, "the first ran out of time, the second finished the run, the others have nothing to do"


def test_a_failure_ends_the_chain(slurm, python, tmp_path):
    words = ["toy.yaml", f"--runs={tmp_path}", "--fail=7"]
    chain = slurm.submit("train_array.sbatch", *words, options=["--array=0-2%1"], SR_DIST_PYTHON=python)
    assert state(slurm, f"{chain}_0") == ("FAILED", "7:0")
    slurm.wait(lambda: not slurm.run("squeue", "--noheader", f"--jobs={chain}"), "the end of the chain")
    assert len(attempts(tmp_path)) == 1


def test_a_sweep_trains_a_run_for_each_value_and_each_line(slurm, python, tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_text("--seed=1 --data.batch=8\n\n--name=mine --seed=2\n")
    words = ["toy.yaml", f"--runs={tmp_path}", "--steps=5", "--gain=5"]
    rates = slurm.submit(
        "sweep.sbatch", "optimizer.learning_rate=1e-4,2e-4", *words, options=["--array=0-1"], SR_DIST_PYTHON=python
    )
    both = slurm.submit("sweep.sbatch", lines, *words, options=["--array=0-2"], SR_DIST_PYTHON=python)
    states = [state(slurm, f"{job}_{task}") for job, task in ((rates, 0), (rates, 1), (both, 0), (both, 1), (both, 2))]
    assert states == [("COMPLETED", "0:0")] * 4 + [("FAILED", "2:0")], "there is no third line"
    runs = {path.name for path in tmp_path.iterdir() if (path / "DONE").exists()}
    assert runs == {"toy-learning_rate-1e-4", "toy-learning_rate-2e-4", "toy-line-0", "mine"}
    commands = "\n".join(attempts(tmp_path))
    assert "--name=toy-learning_rate-2e-4 --optimizer.learning_rate=2e-4" in commands
    assert "--name=toy-line-0 --seed=1 --data.batch=8" in commands


def test_a_failing_stage_cancels_the_stages_after_it(slurm, python, tmp_path):
    (tmp_path / "toy.yaml").touch()
    train = ["train:", f"{tmp_path}/toy.yaml", f"--runs={tmp_path}", "--fail=7"]
    evaluate = ["evaluate:", f"{tmp_path}/toy", f"--runs={tmp_path}", "--data=x"]
    output = slurm.run("bash", "launch/slurm/pipeline.sh", *train, *evaluate, SR_DIST_PYTHON=python)
    (first, one), (second, two) = (line.split() for line in output.splitlines())
    assert (first, second) == ("train", "evaluate")
    assert state(slurm, one) == ("FAILED", "7:0")
    assert state(slurm, two)[0] == "CANCELLED"
    assert len(attempts(tmp_path)) == 1


def test_nodes_with_unequal_numbers_of_gpus_are_refused(slurm, python, tmp_path):
    words = ["toy.yaml", f"--runs={tmp_path}", "--steps=5", "--gain=5"]
    job_id = slurm.submit("train.sbatch", *words, options=["--nodes=2", "--gpus=3"], SR_DIST_PYTHON=python)
    assert state(slurm, job_id)[0] == "FAILED"
    assert "n1 has 1 GPUs for this job, but the first node has 2; request the same number on each node" in slurm.log(job_id)


def faulty(slurm, python: str, folder: Path, faults: str, script: str = "train.sbatch", **more: str):
    """Submits a run of 20 steps whose attempts gain five steps and then fail, on two nodes of three: -> the job id."""
    settings = {"runs": folder, "steps": 20, "gain": 5, "faults": faults}
    options = ["--nodes=2", "--partition=wide"]
    slurm.wait(slurm.idle, "idle nodes")  # also those of the test before
    for key in [key for key in more if key.islower()]:
        value = more.pop(key)
        if key in ("nodes", "partition", "array"):
            options.append(f"--{key}={value}")
        else:
            settings[key] = value
    words = ["toy.yaml", *(f"--{key}={value}" for key, value in settings.items())]
    return slurm.submit(script, *words, options=options, SR_DIST_PYTHON=python, **more)


def nodes_of_attempts(folder: Path) -> list[str]:
    return [line.split()[1] for line in attempts(folder)]


def incidents(folder: Path) -> list[dict]:
    path = folder / "toy" / "incidents.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_killed_rank_goes_back_to_the_queue_without_its_node(slurm, python, tmp_path):
    job_id = faulty(slurm, python, tmp_path, "n1:KILL", gain=10)
    assert state(slurm, job_id) == ("COMPLETED", "0:0"), slurm.log(job_id)
    assert nodes_of_attempts(tmp_path) == ["n[0-1]", "n[0,2]"]
    job = slurm.job(job_id)
    assert (job["Restarts"], job["ExcNodeList"]) == ("1", "n1")
    (row,) = incidents(tmp_path)
    place = {key: row[key] for key in ("job", "attempt", "cause", "node", "rank", "exit_code", "step", "saved_step", "requeued")}
    assert place == {
        "job": job_id, "attempt": 0, "cause": "signal", "node": "n1", "rank": 1, "exit_code": 137, "step": 10, "saved_step": 10,
        "requeued": True,
    }  # fmt: skip
    assert "n1, rank 1: SIGKILL; the run has advanced from step 0 to step 10" in slurm.log(job_id)


def test_a_job_leaves_a_node_that_was_drained(slurm, python, tmp_path):
    """An administrator drains the node while the job still runs on it, then a rank is killed on the other one. With one node of
    two drained, nothing can be excluded; with --nodes=1-2 the job goes on with the node that failed."""
    job_id = faulty(slurm, python, tmp_path, "n0:KILL", gain=10, go="true", nodes="1-2", partition="all")
    slurm.wait((tmp_path / "toy" / "saved-0").exists, "the attempt")
    slurm.run("scontrol", "update", "NodeName=n1", "State=DRAIN", "Reason=test")
    try:
        (tmp_path / "go").touch()
        assert state(slurm, job_id) == ("COMPLETED", "0:0"), slurm.log(job_id)
    finally:
        slurm.run("scontrol", "update", "NodeName=n1", "State=RESUME")
    assert nodes_of_attempts(tmp_path) == ["n[0-1]", "n0"]
    assert "n0 is not excluded: 0 other nodes are up, and the job needs 2 (SR_DIST_MIN_NODES)" in slurm.log(job_id)
    assert slurm.job(job_id)["ExcNodeList"] == "(null)"


def test_a_job_of_elastic_size_continues_on_fewer_nodes(slurm, python, tmp_path):
    job_id = faulty(
        slurm, python, tmp_path, "n1:7", gain=10, nodes="1-2", partition="all", SR_DIST_MIN_NODES="1", SR_DIST_RETRIES="1"
    )
    assert state(slurm, job_id) == ("COMPLETED", "0:0"), slurm.log(job_id)
    assert nodes_of_attempts(tmp_path) == ["n[0-1]", "n0"], "takes what it gets, then what remains"
    (row,) = incidents(tmp_path)
    assert (row["cause"], row["node"], row["last_lines"]) == ("error", "n1", ["OSError: the disk is gone"])


def test_failures_without_progress_end_the_job(slurm, python, tmp_path):
    job_id = faulty(slurm, python, tmp_path, "first:KILL,first:KILL", gain=0, nodes=1, SR_DIST_RETRIES="1")
    assert state(slurm, job_id) == ("FAILED", "137:0"), slurm.log(job_id)
    assert len(attempts(tmp_path)) == 2
    assert [row["requeued"] for row in incidents(tmp_path)] == [True, False]
    assert "not requeued: 2 attempts in a row made no progress (SR_DIST_RETRIES)" in slurm.log(job_id)


def test_a_mistake_on_one_of_two_ranks_is_not_repeated(slurm, python, tmp_path):
    """A launcher turns its exit code 2 into 1."""
    job_id = faulty(slurm, python, tmp_path, "n1:2", gain=0)
    assert state(slurm, job_id) == ("FAILED", "2:0"), slurm.log(job_id)
    assert (slurm.job(job_id)["Restarts"], incidents(tmp_path)) == ("0", [])


def test_a_run_that_meets_a_failing_server_on_its_way_goes_back(slurm, python, tmp_path):
    """Its exit code is 2, as for a mistake, but it has saved since it began. Its node is not to blame."""
    job_id = faulty(slurm, python, tmp_path, "n1:2", gain=10)
    assert state(slurm, job_id) == ("COMPLETED", "0:0"), slurm.log(job_id)
    assert nodes_of_attempts(tmp_path)[0] == "n[0-1]" and slurm.job(job_id).get("ExcNodeList", "(null)") == "(null)"
    assert [(row["cause"], row["exit_code"], row["requeued"]) for row in incidents(tmp_path)] == [("error", 2, True)]


def test_a_chain_continues_after_a_failure_without_the_node(slurm, python, tmp_path):
    chain = faulty(slurm, python, tmp_path, "n1:KILL", script="train_array.sbatch", gain=10, array="0-2%1")
    assert [state(slurm, f"{chain}_{task}") for task in (0, 1, 2)] == [("COMPLETED", "0:0")] * 3, slurm.log(chain)
    assert nodes_of_attempts(tmp_path) == ["n[0-1]", "n[0,2]"]


def test_a_job_that_saves_in_its_grace_time_is_requeued(slurm, python, tmp_path):
    """SLURM pre-empts it for an urgent job, and leaves it two minutes; it saves in one second and ends by itself."""
    slurm.wait(slurm.idle, "idle nodes")
    words = ["toy.yaml", f"--runs={tmp_path}", "--steps=10", "--gain=5"]
    job_id = slurm.submit("train.sbatch", *words, SR_DIST_PYTHON=python)
    slurm.wait((tmp_path / "toy" / "recipe.yaml").exists, "the attempt")
    preempt(slurm)
    assert state(slurm, job_id) == ("COMPLETED", "0:0"), slurm.log(job_id)
    assert slurm.job(job_id)["Restarts"] == "1"
    assert len(attempts(tmp_path)) == 2
    assert "SLURM pre-empts the job; " in slurm.log(job_id)


def preempt(slurm) -> None:
    urgent = slurm.run("sbatch", "--parsable", "--partition=urgent", "--exclusive", "--nodes=2", "--wrap=true").strip()
    assert slurm.ended(urgent)["JobState"] == "COMPLETED"
