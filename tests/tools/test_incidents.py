"""Which failure counts as the first, when a job may try again, and what a rank that fails leaves behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import processes
import pytest

from sr_dist.core.run_layout import INCIDENTS
from sr_dist.tools import incidents
from sr_dist.training.loop import Diverged
from sr_dist.training.rollback import Collapsed

PEER = "RuntimeError: [pair.cc:534] Connection closed by peer [127.0.0.1]:25000"
WATCHDOG = "[rank3]:[E1128] [PG ID 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=12)"
DIVERGED, COLLAPSED = (f"error: the training has {end.kind}: step 9: the discriminator has won" for end in (Diverged, Collapsed))


def leave(folder: Path, rank: int, ended: float, code: int, *lines: str, node: str = "") -> None:
    folder.mkdir(exist_ok=True)
    row = {"time": ended, "node": node or f"n{rank}", "rank": rank, "exit_code": code, "last_lines": lines}
    (folder / f"rank-{rank}.json").write_text(json.dumps(row))


def judge(run: Path, capsys, **options: object) -> tuple[str, str]:
    """-> the two lines for the job: verdict, node and exit code; the reason."""
    run.mkdir(exist_ok=True)
    given = {"records": run / ".failed", "code": 1, "before": 0, "after": 0, "job": 7, "retries": 3, **options}
    assert incidents.main([str(run), *(f"--{key}={value}" for key, value in given.items())]) == 0
    first, second = capsys.readouterr().out.splitlines()
    return first, second


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / INCIDENTS).read_text().splitlines()] if (run / INCIDENTS).exists() else []


@pytest.mark.parametrize(
    ("code", "lines", "cause"),
    [
        (2, ["error: stepz: unknown key"], "mistake"),
        (137, [PEER], "signal"),  # killed while it complained of its neighbour
        (139, [], "signal"),
        (134, [WATCHDOG], "network"),
        (134, ["free(): invalid pointer"], "signal"),
        (1, [PEER], "network"),
        (1, ["torch.distributed.DistBackendError: NCCL error in: x.cpp:1"], "network"),
        (1, ["[Gloo] Rank 0 is connected to 1 peer ranks.", "OSError: No space left on device"], "error"),
        (1, ["RuntimeError: CUDA error: uncorrectable ECC error encountered"], "device"),
        (1, ["torch.OutOfMemoryError: CUDA out of memory."], "error"),
        (
            1,
            ["OutOfMemory: out of memory in step 3: CUDA error: CUBLAS_STATUS_ALLOC_FAILED"],
            "error",
        ),
        (1, ["torch.AcceleratorError: CUDA error: out of memory"], "error"),
        (1, ["DistBackendError: ncclUnhandledCudaError: Call to CUDA failed. Cuda failure 2 'out of memory'"], "error"),
        (1, [DIVERGED], "diverged"),
        (1, [COLLAPSED, "a line of another thread"], "diverged"),
    ],
)
def test_causes_are_read_from_exit_codes_and_last_lines(code, lines, cause):
    assert incidents.cause_of(code, lines) == cause


def test_the_first_failure_in_time_names_the_node(tmp_path, capsys):
    """Rank 2 is killed; the others lose their neighbour afterwards, one of them with an earlier number."""
    for rank, ended, code, line in ((0, 12.5, 1, PEER), (2, 12.1, 137, ""), (3, 12.4, 1, PEER)):
        leave(tmp_path / ".failed", rank, ended, code, line)
    (tmp_path / "metrics.jsonl").write_text('{"step": 8}\n{"step": 9}\n{"ste')
    assert judge(tmp_path, capsys, before=4, after=8) == (
        "again n2 137",
        "n2, rank 2: SIGKILL; the run has advanced from step 4 to step 8",
    )
    (row,) = rows(tmp_path)
    assert (row["node"], row["rank"], row["step"], row["saved_step"], row["requeued"]) == ("n2", 2, 9, 8, True)


def test_a_rank_that_lost_another_one_does_not_blame_its_own_node(tmp_path, capsys):
    """A node that lost its power writes nothing."""
    leave(tmp_path / ".failed", 0, 1.0, 1, PEER)
    assert judge(tmp_path, capsys, before=4, after=4)[0] == "again - 1"
    assert [(row["cause"], row["node"]) for row in rows(tmp_path)] == [("network", "n0")]
    leave(tmp_path / ".failed", 0, 1.0, 1, "torch.distributed.DistBackendError: ncclSystemError: System call failed")
    assert judge(tmp_path, capsys, before=4, after=4)[0] == "again n0 1"


def test_a_mistake_on_any_rank_ends_the_job_without_a_trace(tmp_path, capsys):
    leave(tmp_path / ".failed", 0, 1.0, 1, PEER)
    leave(tmp_path / ".failed", 1, 2.0, 2, "error: data.train: no folder")
    assert judge(tmp_path, capsys, before=4, after=4)[0] == "stop - 2"
    assert not rows(tmp_path)


def test_exit_code_2_of_an_attempt_that_trained_is_no_mistake(tmp_path, capsys):
    """A server that fails on the way, or an image that cannot be read. The next attempt fails at once if it is still so."""
    line = "error: data.train: 'http://h/00001.tar': the server answers 503 Service Unavailable"
    leave(tmp_path / ".failed", 0, 1.0, 2, line)
    leave(tmp_path / ".failed", 1, 2.0, 1, PEER)
    verdict, reason = judge(tmp_path, capsys, before=4, after=8)
    assert verdict == "again - 2" and line in reason and "advanced from step 4 to step 8" in reason
    assert [(row["cause"], row["requeued"], row["last_lines"]) for row in rows(tmp_path)] == [("error", True, [line])]
    assert judge(tmp_path, capsys, before=8, after=8)[0] == "stop - 2"


def test_a_divergence_is_not_repeated_even_after_progress(tmp_path, capsys):
    leave(tmp_path / ".failed", 0, 1.0, 1, DIVERGED)
    verdict, reason = judge(tmp_path, capsys, before=4, after=8)
    assert verdict == "stop n0 1"
    assert "the discriminator has won (exit code 1); not requeued: it would diverge again" in reason
    assert [row["requeued"] for row in rows(tmp_path)] == [False]


def test_faults_without_progress_are_repeated_three_times_in_a_row(tmp_path, capsys):
    leave(tmp_path / ".failed", 1, 1.0, 137)
    verdicts = [judge(tmp_path, capsys, attempt=attempt, before=8, after=8)[0].split()[0] for attempt in range(4)]
    assert verdicts == ["again"] * 3 + ["stop"]
    assert judge(tmp_path, capsys, job=8, before=8, after=8)[0].startswith("again"), "another job counts from 0"


def test_progress_begins_the_count_again(tmp_path, capsys):
    leave(tmp_path / ".failed", 1, 1.0, 137)
    steps = [(0, 0), (0, 0), (0, 4), (4, 4), (4, 4), (4, 4), (4, 4)]
    verdicts = [judge(tmp_path, capsys, before=before, after=after)[0].split()[0] for before, after in steps]
    assert verdicts == ["again"] * 6 + ["stop"]


def test_an_error_of_the_program_is_repeated_only_after_progress(tmp_path, capsys):
    leave(tmp_path / ".failed", 0, 1.0, 1, "Traceback (most recent call last):", "OSError: No space left on device")
    verdict, reason = judge(tmp_path, capsys, before=4, after=4)
    assert (verdict, reason) == (
        "stop n0 1",
        "n0, rank 0: OSError: No space left on device (exit code 1); the run is still at step 4: not requeued, because this "
        "attempt made no progress",
    )
    assert judge(tmp_path, capsys, before=4, after=5)[0] == "again n0 1"
    assert judge(tmp_path, capsys, before=4, after=5, retries=0)[0] == "stop n0 1"


def test_without_a_record_the_launchers_exit_code_counts(tmp_path, capsys):
    assert judge(tmp_path, capsys, code=1)[0] == "stop - 1"
    assert judge(tmp_path, capsys, code=137)[0] == "again - 137"
    assert judge(tmp_path, capsys, code=2)[0] == "stop - 2"


def test_an_attempt_that_slurm_ended_is_recorded(tmp_path, capsys):
    _, reason = judge(tmp_path, capsys, lost="true", before=4, after=4)
    assert reason == "SLURM ended the attempt before it could save, as when a node is lost; the job continues"
    assert [(row["cause"], row["node"]) for row in rows(tmp_path)] == [("lost", None)]


def test_a_rank_that_is_killed_leaves_a_record(tmp_path, monkeypatch):
    """The module prints, is killed, and the watcher says so with the code of a shell."""
    (tmp_path / "dies.py").write_text(
        "import os, sys\nfor i in range(40): print('line', i, file=sys.stderr, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    variables = {"SR_DIST_FAILURES": str(tmp_path / "failed"), "SLURMD_NODENAME": "n5", "RANK": "3"}
    environment = processes.environment(PYTHONPATH=f"{processes.ROOT}:{tmp_path}", **variables)
    line = [sys.executable, "-m", "sr_dist.tools.watch_rank", "dies"]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=processes.LONGEST)
    assert done.returncode == 137
    assert done.stderr.splitlines() == [f"line {i}" for i in range(40)]
    record = json.loads((tmp_path / "failed" / "rank-3.json").read_text())
    assert (record["node"], record["rank"], record["exit_code"]) == ("n5", 3, 137)
    assert record["last_lines"] == [f"line {i}" for i in range(10, 40)]


def test_signals_reach_the_rank(tmp_path):
    (tmp_path / "waits.py").write_text(
        "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(2))\n"
        "print('ready', flush=True)\nwhile True: time.sleep(0.05)\n"
    )
    environment = processes.environment(PYTHONPATH=f"{processes.ROOT}:{tmp_path}", SR_DIST_FAILURES=str(tmp_path / "failed"))
    line = [sys.executable, "-m", "sr_dist.tools.watch_rank", "waits"]
    with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(processes.LONGEST) == 2
    assert json.loads((tmp_path / "failed" / "rank-0.json").read_text())["exit_code"] == 2


def test_trackers_get_an_alert(tmp_path, monkeypatch, write_recipe, capsys):
    from sr_dist.core import config
    from sr_dist.recipe import checks
    from sr_dist.training import tracker

    sent = []

    class Pager:
        def alert(self, title: str, text: str) -> None:
            sent.append((title, text))

        def close(self, code: int) -> None:
            sent.append(("closed", code))

    recipe = checks.read_recipe(write_recipe(), {})
    recipe.folder.mkdir(parents=True)
    (recipe.folder / "recipe.yaml").write_text(config.text(recipe))
    monkeypatch.setattr(tracker, "tracker_openers", lambda recipe: [lambda recipe, info: Pager(), lambda recipe, info: None])
    leave(recipe.folder / ".failed", 1, time.time(), 137)
    judge(recipe.folder, capsys, before=0, after=2)
    text = "step 2: n1, rank 1: SIGKILL; the job goes back to the queue"
    assert sent == [("tiny failed", text), ("closed", 1)]
