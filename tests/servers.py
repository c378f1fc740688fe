"""A real HTTP server of a folder, with faults: `store.faults["a.tar"] = ["drop", "500"]`, one per request.

It answers ranges and sends ETags, unless `store.plain` is set. A tar is sent with `store.rate` bytes per second, if that is set.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Store(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.requests: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()  # bytes by file
        self.plain = False
        self.query = ""  # without which every request is refused
        self.rate = 0.0  # of each connection
        self.connections = self.most_connections = 0  # that are sending a tar
        self.released = threading.Event()  # for the fault "wait"
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def next_fault(self, name: str) -> str:
        with self.lock:
            self.requests[name] += 1
            return self.faults[name].pop(0) if self.faults[name] else ""

    def handle_error(self, request, client_address) -> None:
        """Ignores clients that close the connection: tests do this on purpose."""


class Handler(BaseHTTPRequestHandler):
    server: Store

    def do_GET(self) -> None:
        name, _, query = self.path.lstrip("/").partition("?")
        if self.server.query not in ("", query):
            self.send_error(403)
            return
        fault, path = self.server.next_fault(name), self.server.folder / name
        if fault in ("404", "403", "500") or not path.is_file():
            self.send_error(int(fault or 404))
            return
        if fault == "wait":
            self.server.released.wait(60)
        data = path.read_bytes()
        status, headers = 200, {}
        if fault == "page":
            data, headers = b"<html>confirm</html>", {"Content-Type": "text/html; charset=utf-8"}
        elif not self.server.plain:
            headers["ETag"] = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
            if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
                begin, whole = int(wanted[1]), len(data)
                if begin >= whole:
                    self.send_error(416)
                    return
                status, data = 206, data[begin:]
                headers["Content-Range"] = f"bytes {begin}-{whole - 1}/{whole}"
        length = len(data)
        if fault == "cut":  # a complete response with half of the file
            data, length = data[: len(data) // 2], len(data) // 2
        elif fault == "longer":
            data, length = data + bytes(1000), len(data) + 1000
        elif fault == "flip":
            data = data[:700] + bytes([data[700] ^ 1]) + data[701:]
        elif fault in ("drop", "stall"):  # announces the whole file and closes the connection half-way, or stays silent
            data = data[: len(data) // 2]
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self._send(data, self.server.rate if name.endswith(".tar") else 0.0)
        with self.server.lock:
            self.server.sent[name] += len(data)
        if fault == "stall":
            self.server.released.wait(60)

    def _send(self, data: bytes, rate: float) -> None:
        if not rate:
            self.wfile.write(data)
            return
        with self.server.lock:
            self.server.connections += 1
            self.server.most_connections = max(self.server.connections, self.server.most_connections)
        try:
            piece = max(int(rate / 50), 1)
            for first in range(0, len(data), piece):
                time.sleep(1 / 50)
                self.wfile.write(data[first : first + piece])
        finally:
            with self.server.lock:
                self.server.connections -= 1

    def log_message(self, *_) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[Store]:
    store = Store(folder)
    thread = threading.Thread(target=store.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield store
    finally:
        store.released.set()
        store.shutdown()
        store.server_close()
        thread.join()
