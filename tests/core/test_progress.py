"""Progress on stderr: lines where there is no terminal, and a bar on one."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from sr_dist.core import progress
from sr_dist.core.progress import Progress, with_progress


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_a_line_comes_every_ten_seconds(clock, capsys):
    with Progress(100, about="scoring") as bar:
        for _ in range(13):
            clock.now += 2
            bar.advance(4)
    assert capsys.readouterr().err.splitlines() == [
        "scoring: 20 of 100 images, 2 images/s, 0:40 left",
        "scoring: 40 of 100 images, 2 images/s, 0:30 left",
    ]


def test_work_of_less_than_ten_seconds_prints_nothing(clock, capsys):
    with Progress(5) as bar:
        for _ in range(5):
            clock.now += 1.9
            bar.advance()
    assert capsys.readouterr() == ("", "")


def test_what_was_done_before_does_not_count_for_the_speed(clock, capsys):
    """10 of the 60 that remained took 100 s, so the other 50 take 500 s."""
    with Progress(100, "sample", done=40) as bar:
        clock.now += 100
        bar.advance(10)
    assert capsys.readouterr().err == "50 of 100 samples, 0.1 samples/s, 8:20 left\n"


def test_more_than_an_hour(clock):
    bar = Progress(101)
    clock.now += 100
    bar.advance(1)
    assert bar.text() == "1 of 101 images, 0.01 images/s, 2:46:40 left"


def test_only_the_first_rank_shows_it(clock, capsys):
    with Progress(100, shown=False) as bar:
        clock.now += 100
        bar.advance(10)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("stream", [None, "closed"])
def test_a_closed_stderr_is_no_error(clock, monkeypatch, stream):
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", None if stream is None else file)
    with Progress(100) as bar:
        file.close()
        clock.now += 100
        bar.advance(10)


def test_results_are_passed_on(clock, capsys):
    def steps():
        for amount, result in ((3, "a"), (5, "b")):
            clock.now += 12
            yield amount, result

    assert list(with_progress(steps(), 10)) == ["a", "b"]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["3 of 10 images", "8 of 10 images"]


SCRIPT = """
import time
from sr_dist.core.progress import Progress, print_line
with Progress(4, about="scoring") as bar:
    for i in range(4):
        time.sleep(0.25)
        bar.advance()
        if i == 2:
            print_line("failed: one")
print("the end")
"""


def test_on_a_terminal_it_is_a_bar_that_goes_away_again():
    leader, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=terminal, stderr=terminal, env=os.environ) as process:
        os.close(terminal)
        text = b""
        while True:
            try:
                text += os.read(leader, 4096)
            except OSError:  # the process has ended
                break
    os.close(leader)
    assert process.returncode == 0
    parts = [part.strip() for part in text.decode().replace("\r", "\n").splitlines()]
    assert any(part.startswith("scoring:  75%") and "3/4" in part and "image/s" in part for part in parts), parts
    assert "failed: one" in parts
    assert [part for part in parts if part][-1] == "the end"
