"""Processes end when they should, with a word, and only then."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import processes
import psutil
import pytest
from processes import environment, finish, finish_with, kill, last_step, launch, run, small_gan, start, trainers, wait_for

from sr_dist.training import classification
from sr_dist.training.stop_request import StopRequest

FOLDER = Path(__file__).parent


def words(shards: Path, runs: Path, **more: object) -> list[str]:
    return small_gan(shards, runs, **{"steps": 100_000, "data.batch": 4, "save_every": "none", **more})


# ---- variables of a launcher that is not there


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"RANK": "1"}, "RANK: it is 1, but WORLD_SIZE is not set; "),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK: it is 1, but WORLD_SIZE is not set; "),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE: it is 2, but RANK is not set; "),
        ({"RANK": "abc"}, "RANK: 'abc' is not a number; "),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE: 'many' is not a number; "),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK: it is 2, but WORLD_SIZE is 2; "),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "WORLD_SIZE: it is 2, but MASTER_ADDR is not set; "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_left_over_variables_are_refused_with_a_line(variables, text, photo_shards, tmp_path):
    _, err = run(0, "sr_dist.train", *words(photo_shards, tmp_path, steps=1), expect=2, **variables)
    assert [line for line in err.splitlines() if "error" in line or "Traceback" in line] == [
        line for line in err.splitlines() if text in line
    ]
    assert "unset " in err and len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_mistake_is_printed_whatever_the_variables_say():
    _, err = run(0, "sr_dist.train", "nothing.yaml", expect=2, LOCAL_RANK="1")
    assert err.startswith("error: ")


def test_variables_of_one_process_are_accepted(photo_shards, tmp_path):
    """Some clusters set these without a launcher, and accelerate writes -1 for none."""
    run(0, "sr_dist.train", *words(photo_shards, tmp_path, steps=1), RANK="0", WORLD_SIZE="1", LOCAL_RANK="-1")


# ---- signals


def test_a_closed_terminal_saves_like_sigterm(photo_shards, tmp_path):
    """With a loader worker, which gets the signal too."""
    process = start(0, "sr_dist.train", *words(photo_shards, tmp_path, data__workers=1))
    wait_for(lambda: last_step(tmp_path / "run") >= 2, process)
    kill(process, signal.SIGHUP)
    code, out, err = finish(process)
    assert (code, "(SIGHUP); the same command continues" in out) == (0, True), err
    assert (tmp_path / "run" / "PREEMPTED").exists() and list((tmp_path / "run" / "checkpoints").iterdir())


def test_under_nohup_a_closed_terminal_changes_nothing(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        request = StopRequest(tmp_path)
        os.kill(os.getpid(), signal.SIGHUP)
        assert not request.pending()
        request.close()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ctrl_c_at_start_up_is_one_line():
    _, err = run(0, "interrupted", "recipe.yaml", expect=130, cwd=FOLDER)
    assert err == "interrupted\n"


@pytest.fixture(scope="module")
def two_steps(photo_shards, tmp_path_factory) -> Path:
    runs = tmp_path_factory.mktemp("two_steps")
    run(0, "sr_dist.train", *words(photo_shards, runs, steps=2))
    return runs / "run"


@pytest.mark.parametrize(
    ("signal_name", "function", "marker", "code"),
    [
        ("SIGTERM", "check_fits", "DONE", -signal.SIGTERM),  # the folder is as it was
        ("SIGTERM", "claim_folder", "DONE", 0),
        ("SIGUSR1", "log_start", "PREEMPTED", 0),
        ("SIGKILL", "resume", "PREEMPTED", -signal.SIGKILL),
    ],
)
def test_a_continued_run_that_is_ended_before_its_first_step_keeps_a_marker(
    signal_name, function, marker, code, two_steps, photo_shards, tmp_path
):
    """A run that was done and is extended, or one that was stopped."""
    folder = shutil.copytree(two_steps, tmp_path / "run")
    os.rename(folder / "DONE", folder / marker)
    process = start(0, "ended_early", signal_name, function, *words(photo_shards, tmp_path), cwd=FOLDER)
    out, _ = finish_with(code, process)
    final = "PREEMPTED" if function != "check_fits" else marker
    assert [name for name in ("DONE", "PREEMPTED") if (folder / name).exists()] == [final]
    assert (folder / final).read_text() == "step 2\n"
    assert (f"stopped after step 2 ({signal_name}); the same command continues" in out) == (code == 0)
    assert last_step(folder) == 2


def test_a_run_at_its_last_step_is_done_again_whatever_comes_at_start_up(two_steps, photo_shards, tmp_path):
    folder = shutil.copytree(two_steps, tmp_path / "run")
    command = words(photo_shards, tmp_path, steps=2)
    finish_with(0, start(0, "ended_early", "SIGTERM", "log_start", *command, cwd=FOLDER))
    assert (folder / "DONE").exists() and not (folder / "PREEMPTED").exists()


# ---- ranks end with their launcher


def ends_within(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize(
    ("variables", "ends"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "no"}, True),
        ({"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "STUBBORN": "yes"}, True),
        ({}, False),
    ],
    ids=["accelerate", "one of two ranks that waits for the other", "a shell"],
)
def test_a_rank_ends_with_its_launcher_and_a_command_does_not_end_with_its_shell(variables, ends):
    line = [sys.executable, str(FOLDER / "orphan.py")]
    out = subprocess.run(line, env=environment(**variables), capture_output=True, text=True, start_new_session=True).stdout
    pid = int(out)
    try:
        assert ends_within(pid, processes.LONGEST if ends else 2.5) == ends
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_rank_whose_launcher_is_killed_saves_and_ends(photo_shards, tmp_path):
    process = launch(1, "sr_dist.train", *words(photo_shards, tmp_path))
    wait_for(lambda: last_step(tmp_path / "run") >= 2, process)
    rank = trainers(process)[0]
    process.kill()
    ended = ends_within(rank.pid, processes.LONGEST)
    if not ended:
        rank.kill()
    process.communicate()
    assert ended
    assert (tmp_path / "run" / "PREEMPTED").exists()


# ---- the watchdog


@pytest.mark.parametrize("fault", ["none", "folder removed", "file for a folder", "stderr closed", "nobody reads stderr"])
def test_the_watchdog_ends_a_rank_that_hangs_whatever_fails(fault, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    line = [sys.executable, str(FOLDER / "hanging.py"), str(folder), fault]
    process = subprocess.Popen(line, env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        assert process.wait(timeout=processes.LONGEST) == 1
        if "stderr" not in fault:
            assert "rank 0 made no progress for 0.4 s: the last step" in process.stderr.read()
    finally:
        process.kill()
        process.stderr.close()


@pytest.mark.slow
def test_two_ranks_of_which_one_stands_still_end_although_their_folder_is_gone(photo_shards, tmp_path):
    folder, command = tmp_path / "run", words(photo_shards, tmp_path, hang_timeout=12)  # a busy machine needs seconds for a step
    process = start(2, "sr_dist.train", *command)
    wait_for(lambda: last_step(folder) >= 3, process)
    trainers(process)[1].send_signal(signal.SIGSTOP)
    shutil.rmtree(folder)
    code, _, err = finish(process)
    assert (code, "rank 0 made no progress for 12 s: " in err) == (1, True), err


class Beats:
    def __init__(self):
        self.count = 0

    def beat(self, activity):
        self.count += 1


def test_the_report_of_a_classifier_feeds_the_watchdog_between_batches(monkeypatch):
    """Three batches: the watchdog hears of each, and the report is not given up."""
    from types import SimpleNamespace as Some

    def three_batches(*_, give_up=lambda: False, **__):
        assert not any(give_up() for _ in range(3))
        raise InterruptedError

    beats = Beats()
    classifier = Some(file=Path("runs/c/checkpoints/0000001/x"), labels=None, sha256="0", to=lambda device: None)
    monkeypatch.setattr(classification, "_report_images", lambda run: (np.zeros(3), "three images"))
    monkeypatch.setattr(classification.trained, "open_classifier", lambda *_: classifier)
    monkeypatch.setattr(classification, "classify_all", three_batches)
    with pytest.raises(InterruptedError):
        classification.report(Some(recipe=Some(folder=Path("nothing")), device="cpu", watchdog=beats))
    assert beats.count >= 3


# ---- one rank fails


@pytest.mark.slow
def test_where_one_rank_fails_alone_no_rank_waits_for_it():
    """Its error is raised by all. A user's mistake is printed once, because all ranks have it."""
    out, _ = finish_with(0, start(2, "first_fails", cwd=FOLDER))
    lines = [line for line in out.splitlines() if line.startswith("fail_on_")]
    own, others = "ZeroDivisionError: no, False", "RuntimeError: no, False"
    assert sorted(lines) == sorted(
        [f"fail_on_{which}, rank {rank}: UserError: name: no, True" for which in ("first", "second") for rank in (0, 1)]
        + [f"fail_on_first, rank 0: {own}", f"fail_on_first, rank 1: {others}"]
        + [f"fail_on_second, rank 1: {own}", f"fail_on_second, rank 0: {others}"]
    )


# ---- what a second look found


def test_a_process_that_is_suspended_goes_on(photo_shards, tmp_path):
    """As a scheduler, Ctrl-Z or a laptop's lid do it. The watchdog stood still as well, so nothing hangs."""
    folder = tmp_path / "run"
    process = start(0, "sr_dist.train", *words(photo_shards, tmp_path, hang_timeout=8))
    wait_for(lambda: last_step(folder) >= 2, process)
    kill(process, signal.SIGSTOP)
    time.sleep(10)
    kill(process, signal.SIGCONT)
    step = last_step(folder)
    wait_for(lambda: last_step(folder) >= step + 3, process)
    time.sleep(4)  # two periods of the watchdog
    kill(process, signal.SIGTERM)
    finish_with(0, process)
    assert (folder / "PREEMPTED").exists()


def test_one_ctrl_c_that_arrives_twice_saves(photo_shards, tmp_path):
    """`timeout` and some shells pass on a signal that the whole group gets."""
    folder = tmp_path / "run"
    process = start(0, "sr_dist.train", *words(photo_shards, tmp_path))
    wait_for(lambda: last_step(folder) >= 2, process)
    kill(process, signal.SIGINT)
    time.sleep(0.05)
    kill(process, signal.SIGINT)
    finish_with(0, process)
    assert (folder / "PREEMPTED").exists()


def test_a_stage_of_zero_that_is_none_is_a_line(photo_shards, tmp_path):
    variables = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "abc"}
    _, err = run(0, "sr_dist.train", *words(photo_shards, tmp_path, steps=1), expect=2, **variables)
    assert err.startswith("error: ACCELERATE_DEEPSPEED_ZERO_STAGE: 'abc' is no stage of ZeRO")


def test_zero_that_accelerate_would_leave_out_is_refused(photo_shards, tmp_path):
    """accelerate takes ACCELERATE_USE_CPU for a wish for no DeepSpeed, so the run would train under DDP without a word."""
    variables = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2", "ACCELERATE_USE_CPU": "True"}
    _, err = run(0, "sr_dist.train", *words(photo_shards, tmp_path, steps=1), expect=2, **variables)
    assert err.startswith("error: ACCELERATE_USE_CPU: accelerate leaves DeepSpeed out where it is set") and err.count("\n") == 1
    assert "DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES=" in err and not (tmp_path / "run").exists()
