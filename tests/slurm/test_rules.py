"""When a job goes on and when it does not: the real scripts on a real SLURM, with a stand-in for Python that needs no time."""

from __future__ import annotations

import shlex
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


def out_of_time(slurm, number: int, folder: Path, attempt: int) -> None:
    """What SLURM says 180 s before the end of the attempt with this number."""

    def begun() -> bool:
        slurm.hurry(number)
        return len(attempts(folder)) >= attempt

    slurm.wait(begun, f"attempt {attempt}")
    slurm.ask("scancel", "--batch", "--signal=USR1", str(number))


def state(slurm, number: int | str) -> tuple[str, str]:
    known = slurm.ended(number)
    return known["JobState"], known["ExitCode"]


def test_requeued_as_often_as_it_is_allowed(slurm, python, tmp_path):
    words = ["toy.yaml", f"--runs={tmp_path}", "--steps=100", "--gain=5"]
    number = slurm.submit("train.sbatch", *words, SR_DIST_PYTHON=python, SR_DIST_REQUEUES="2")
    for attempt in (1, 2):
        out_of_time(slurm, number, tmp_path, attempt)
        slurm.wait(lambda times=attempt: slurm.job(number)["Restarts"] == str(times), f"requeue {attempt}")
    out_of_time(slurm, number, tmp_path, 3)
    assert state(slurm, number) == ("FAILED", "1:0")
    assert len(attempts(tmp_path)) == 3
    assert "came from step 5 to step 10" in slurm.log(number)
    assert "it has been requeued 2 times" in slurm.log(number)


def test_not_requeued_without_a_step_gained(slurm, python, tmp_path):
    (tmp_path / "toy" / "checkpoints" / "0000040").mkdir(parents=True)
    number = slurm.submit("train.sbatch", "toy.yaml", f"--runs={tmp_path}", "--steps=100", "--gain=0", SR_DIST_PYTHON=python)
    out_of_time(slurm, number, tmp_path, 1)
    assert state(slurm, number) == ("FAILED", "1:0")
    assert "is at step 40, as before this attempt" in slurm.log(number)
    assert slurm.job(number)["Restarts"] == "0"


def test_told_to_stop_by_hand_it_is_not_requeued(slurm, python, tmp_path):
    number = slurm.submit("train.sbatch", "toy.yaml", f"--runs={tmp_path}", "--steps=100", "--gain=5", SR_DIST_PYTHON=python)
    slurm.wait((tmp_path / "toy" / "recipe.yaml").exists, "the attempt")
    (tmp_path / "toy" / "STOP").touch()
    assert state(slurm, number) == ("FAILED", "1:0"), "what depends on the run must not start"
    assert "was told to stop and is saved at step 5" in slurm.log(number)


def test_a_failure_keeps_its_code_also_where_an_older_attempt_was_stopped(slurm, python, tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "PREEMPTED").write_text("step 5\n")
    number = slurm.submit("train.sbatch", "toy.yaml", f"--runs={tmp_path}", "--fail=7", SR_DIST_PYTHON=python)
    assert state(slurm, number) == ("FAILED", "7:0")


def test_a_chain_of_jobs_goes_on_until_the_run_is_done(slurm, python, tmp_path):
    """Of three minutes each, so that SLURM says by itself, at once, that 180 s are left."""
    words = ["toy.yaml", f"--runs={tmp_path}", "--steps=10", "--gain=5"]
    chain = slurm.submit("train_array.sbatch", *words, options=["--array=3-6%1", "--time=3"], SR_DIST_PYTHON=python)
    assert [state(slurm, f"{chain}_{task}") for task in (3, 4, 5, 6)] == [("COMPLETED", "0:0")] * 4
    assert len(attempts(tmp_path)) == 2, "the first was out of time, the second was done, the others have nothing to do"


def test_a_failure_ends_the_chain(slurm, python, tmp_path):
    words = ["toy.yaml", f"--runs={tmp_path}", "--fail=7"]
    chain = slurm.submit("train_array.sbatch", *words, options=["--array=0-2%1"], SR_DIST_PYTHON=python)
    assert state(slurm, f"{chain}_0") == ("FAILED", "7:0")
    slurm.wait(lambda: not slurm.ask("squeue", "--noheader", f"--jobs={chain}"), "the end of the chain")
    assert len(attempts(tmp_path)) == 1


def test_a_sweep_trains_a_run_for_each_value_and_each_line(slurm, python, tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_text("--seed=1 --data.batch=8\n\n--name=mine --seed=2\n")
    words = ["toy.yaml", f"--runs={tmp_path}", "--steps=5", "--gain=5"]
    rates = slurm.submit(
        "sweep.sbatch", "optimizer.learning_rate=1e-4,2e-4", *words, options=["--array=0-1"], SR_DIST_PYTHON=python
    )
    both = slurm.submit("sweep.sbatch", lines, *words, options=["--array=0-2"], SR_DIST_PYTHON=python)
    ends = [state(slurm, f"{job}_{task}") for job, task in ((rates, 0), (rates, 1), (both, 0), (both, 1), (both, 2))]
    assert ends == [("COMPLETED", "0:0")] * 4 + [("FAILED", "2:0")], "there is no third line"
    runs = {path.name for path in tmp_path.iterdir() if (path / "DONE").exists()}
    assert runs == {"toy-learning_rate-1e-4", "toy-learning_rate-2e-4", "toy-line-0", "mine"}
    said = "\n".join(attempts(tmp_path))
    assert "--name=toy-learning_rate-2e-4 --optimizer.learning_rate=2e-4" in said
    assert "--name=toy-line-0 --seed=1 --data.batch=8" in said


def test_a_failing_stage_cancels_what_waits_for_it(slurm, python, tmp_path):
    (tmp_path / "toy.yaml").touch()
    train = ["train:", f"{tmp_path}/toy.yaml", f"--runs={tmp_path}", "--fail=7"]
    evaluate = ["evaluate:", f"{tmp_path}/toy", f"--runs={tmp_path}", "--data=x"]
    answer = slurm.ask("bash", "launch/slurm/pipeline.sh", *train, *evaluate, SR_DIST_PYTHON=python)
    (first, one), (second, two) = (line.split() for line in answer.splitlines())
    assert (first, second) == ("train", "evaluate")
    assert state(slurm, one) == ("FAILED", "7:0")
    assert state(slurm, two)[0] == "CANCELLED"
    assert len(attempts(tmp_path)) == 1


def test_nodes_with_unequal_numbers_of_gpus_are_refused(slurm, python, tmp_path):
    words = ["toy.yaml", f"--runs={tmp_path}", "--steps=5", "--gain=5"]
    number = slurm.submit("train.sbatch", *words, options=["--nodes=2", "--gpus=3"], SR_DIST_PYTHON=python)
    assert state(slurm, number)[0] == "FAILED"
    assert "n1 has 1 GPUs for this job and the first node 2; ask for the same on each" in slurm.log(number)
