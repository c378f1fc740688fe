"""The parts of webdataset's gopen that data/remote/download.py uses."""

from __future__ import annotations

import pytest
from webdataset.gopen import Pipe, gopen, gopen_schemes


def test_a_pipe_has_its_process():
    """`Pipe(words, mode="rb", bufsize=N)`: `proc` is the process, whose stdout is the stream."""
    stream = Pipe(["printf", "abc"], mode="rb", bufsize=8192)
    assert stream.proc.stdout.read() == b"abc"
    assert stream.proc.wait() == 0
    stream.close()


def test_gopen_returns_a_pipe_for_a_command():
    stream = gopen("pipe:printf abc; exit 3", bufsize=8192)
    assert stream.proc.stdout.read() == b"abc"
    assert stream.proc.wait() == 3
    with pytest.raises(OSError, match="3"):
        stream.close()


def test_schemes():
    """`gopen_schemes` is the table of URL schemes; s3 is not among them in every version."""
    assert {"pipe", "http", "https", "gs"} <= set(gopen_schemes)
