"""The local page's server in this process: what one client may take from the others."""

from __future__ import annotations

import http.client
import io
import select
import socket
import threading
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from processes import wait_for

from sr_dist.tools import page
from sr_dist.tools.page import Limits

LINE = b"POST /bicubic HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n"


def small_png():
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


PICTURE = LINE + b"Content-Length: %d\r\n\r\n" % len(small_png()) + small_png()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Pictures wait until `released` is set; then each is `answer`."""
    network = SimpleNamespace(name="smooth", scale=2)
    server = page._open_server([network], ("127.0.0.1", 0), Limits(10**6, 10**6, True), tmp_path)  # type: ignore[list-item]
    server.released, server.answer = threading.Event(), b"picture"  # type: ignore[attr-defined]

    def enlarged(path: Path, *_: object) -> bytes:
        server.released.wait(60)  # type: ignore[attr-defined]
        return server.answer  # type: ignore[attr-defined]

    def work():
        while not server.ending.is_set():
            page._run(server.jobs.get())

    monkeypatch.setattr(page, "enlarged", enlarged)
    threads = [threading.Thread(target=target, daemon=True) for target in (work, lambda: server.serve_forever(0.05))]
    for thread in threads:
        thread.start()
    yield server
    server.released.set()  # type: ignore[attr-defined]
    server.end()


def connect(server, send=b"", **options):
    connection = socket.socket()
    for option, value in options.items():
        connection.setsockopt(socket.SOL_SOCKET, getattr(socket, option), value)
    connection.settimeout(60)
    connection.connect(server.server_address)
    connection.sendall(send)
    return connection


def answer(connection):
    with closing(connection):
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status, response.read()


@pytest.mark.parametrize(
    "host", ["127.8.8.8:7860", "LOCALHOST", "[::1]:1", "evil.example", "127.0.0.1.evil.example", "10.0.0.3", ""]
)
def test_every_address_of_the_loopback_is_this_machine(server, host):
    """--host=127.0.0.2 is one."""
    status, _ = answer(connect(server, f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()))
    assert status == (200 if host.lower().startswith(("127.8", "local", "[::1]")) else 403)


def test_a_slow_browser_gets_the_whole_picture(server, monkeypatch):
    """It takes about 4 s for the picture; SILENCE is the longest time for one piece."""
    monkeypatch.setattr(page, "SILENCE", 2)
    server.answer = bytes(16_000_000)
    server.released.set()
    with closing(connect(server, PICTURE, SO_RCVBUF=1 << 16)) as connection:
        size = 0
        while data := connection.recv(1 << 16):
            size += len(data)
            time.sleep(0.015)
    assert size > 16_000_000


@pytest.mark.parametrize("begin", [b"", LINE + b"Content-Length: 1000\r\n\r\n"], ids=["headers", "picture"])
def test_a_request_that_never_ends_is_given_up(server, monkeypatch, begin):
    """A byte at a time keeps a connection open, of which there are 64."""
    monkeypatch.setattr(page, "LONGEST_UPLOAD", 0.5)
    deadline = time.monotonic() + 20
    with closing(connect(server, begin)) as connection:
        while not select.select([connection], [], [], 0.05)[0]:  # an answer, or the end
            assert time.monotonic() < deadline
            connection.sendall(b"x")


def test_browsers_that_have_left_take_no_place(server):
    """Each change of the run in the page leaves a request behind."""
    waiting = [connect(server, PICTURE) for _ in range(page.MOST_WAITING + 1)]
    wait_for(lambda: len(list(server.folder.iterdir())) == len(waiting))
    for connection in waiting:
        connection.close()
    accepted: list[socket.socket] = []

    def is_accepted() -> bool:
        connection = connect(server, PICTURE)
        if select.select([connection], [], [], 1)[0]:
            assert answer(connection)[0] == 503
            return False
        accepted.append(connection)
        return True

    wait_for(is_accepted)
    server.released.set()
    assert answer(accepted[0]) == (200, b"picture")
