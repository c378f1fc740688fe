"""A local web page that enlarges pictures: an HTTP server in threads, and one picture at a time in the main thread.

Requests: `GET /` is the page. `POST /sr?run=0` and `POST /bicubic?run=0` take the bytes of an image file and return a PNG, or
JSON with an `error`.
"""

from __future__ import annotations

import io
import json
import queue
import secrets
import select
import signal
import socket
import socketserver
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import torch
from jinja2 import Environment, PackageLoader

from sr_dist.core import pixels
from sr_dist.core.addresses import is_loopback
from sr_dist.core.errors import UserError, first_line
from sr_dist.core.resize import imresize
from sr_dist.models import image_files
from sr_dist.models.image_files import ImageFile, ImageFileError
from sr_dist.models.upscaler import Upscaler

TYPES = {
    "image/jpeg": "JPEG", "image/png": "PNG", "image/webp": "WEBP", "image/bmp": "BMP", "image/tiff": "TIFF",
    "image/x-portable-anymap": "PPM", "image/x-portable-pixmap": "PPM", "image/x-portable-graymap": "PPM",
}  # fmt: skip
MOST_WAITING = 8  # pictures
MOST_CONNECTIONS = 64
SILENCE, LONGEST_UPLOAD = 15, 120  # seconds
PIECE = 1 << 18  # bytes of an answer that are sent at once
POLL = 0.2  # seconds


@dataclass(frozen=True)
class Limits:
    bytes: int
    pixels: int
    local: bool  # only this machine may use the page


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass
class Job:
    """An image to enlarge. `work` runs in the main thread."""

    work: Callable[[], bytes]
    cancelled: bool = False
    done: threading.Event = field(default_factory=threading.Event)
    result: bytes | Refused | None = None  # None: the server ends


def serve(networks: Sequence[Upscaler], address: tuple[str, int], limits: Limits) -> None:
    """Serves until SIGINT or SIGTERM. Then no thread and no file is left."""
    with tempfile.TemporaryDirectory(prefix="sr_dist.page.") as folder:
        server = _open_server(networks, address, limits, Path(folder))
        thread = threading.Thread(target=server.serve_forever, args=(POLL,))
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            thread.start()
            shown = f"[{address[0]}]" if ":" in address[0] else address[0]
            print(f"http://{shown}:{server.server_address[1]}/ ({', '.join(server.labels)}); Ctrl-C ends it", flush=True)
            while True:
                _run(server.jobs.get())
        except KeyboardInterrupt:
            print("the page ends", flush=True)
        finally:
            signal.signal(signal.SIGTERM, before)
            server.end()
            thread.join()


def _run(job: Job) -> None:
    if job.cancelled:
        return
    try:
        with torch.inference_mode():
            job.result = job.work()
    except (ImageFileError, UserError) as problem:
        job.result = Refused(HTTPStatus.UNPROCESSABLE_ENTITY, str(problem))
    except Exception as problem:  # a network may be a user's own file, and the page goes on
        traceback.print_exc()
        job.result = Refused(HTTPStatus.INTERNAL_SERVER_ERROR, first_line(problem))
    job.done.set()


def _open_server(networks: Sequence[Upscaler], address: tuple[str, int], limits: Limits, folder: Path) -> Server:
    try:
        family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]
    except (OSError, UnicodeError):  # a label of a host name that is empty or too long
        raise UserError(f"host: '{address[0]}' is no address of this machine; leave it out, or choose 127.0.0.1") from None
    try:
        return type("Server", (Server,), {"address_family": family})(address, networks, limits, folder)
    except OSError as problem:
        raise UserError(f"port: cannot listen on {address[0]}:{address[1]}: {problem.strerror}; choose another --port") from None


class Server(socketserver.ThreadingMixIn, HTTPServer):
    daemon_threads = False  # server_close waits for them

    def __init__(self, address: tuple[str, int], networks: Sequence[Upscaler], limits: Limits, folder: Path) -> None:
        super().__init__(address, Handler)
        self.networks, self.limits, self.folder = networks, limits, folder
        self.jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self.places = threading.Semaphore(MOST_WAITING + 1)  # of those that wait, and of the one that is enlarged
        self.ending = threading.Event()
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()

    @property
    def labels(self) -> list[str]:
        """Names of the networks; those that share theirs have their file too."""
        names = [network.name for network in self.networks]
        return [
            f"{network.name}, x{network.scale}" + (f" ({network.generator.file})" if names.count(network.name) > 1 else "")
            for network in self.networks
        ]

    def server_bind(self) -> None:
        """HTTPServer's own asks a name server for the name of this machine, which may take long."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            full = len(self._connections) >= MOST_CONNECTIONS
            if not full:
                self._connections.add(request)
        if full:
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # a browser that leaves is no error
            traceback.print_exc()

    def end(self) -> None:
        """Ends threads at once: those that wait for a picture answer, those that read from a browser read its end."""
        self.ending.set()
        self.shutdown()
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RD)
        self.server_close()


class Upload(io.RawIOBase):
    """What a browser sends. It may be silent for SILENCE seconds, and must end before the deadline."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.end_after(LONGEST_UPLOAD)

    def end_after(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(min(left, SILENCE))
        try:
            return self._connection.recv_into(buffer)
        finally:
            self._connection.settimeout(SILENCE)


class Request(NamedTuple):
    path: str
    query: dict[str, list[str]]


class Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version = "sr_dist", ""

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self._upload = Upload(self.connection)
        self.rfile = io.BufferedReader(self._upload)

    def do_GET(self) -> None:
        self._answer(self._page)

    def do_POST(self) -> None:
        self._answer(self._enlarge)

    def _answer(self, work: Callable[[Request], None]) -> None:
        try:
            self._check_caller()
            parts = urlsplit(self.path)
            work(Request(parts.path, parse_qs(parts.query, max_num_fields=4)))
        except Refused as problem:
            body = json.dumps({"error": str(problem)}).encode()
            self._send(body, "application/json", problem.status)
            self._read_rest()
        except ValueError:  # of urllib
            self._send(b'{"error": "the address cannot be read"}', "application/json", HTTPStatus.BAD_REQUEST)

    def _check_caller(self) -> None:
        """Other pages of the same browser must not use this one: neither by a name of theirs that leads to this machine, nor
        by a request from their own address."""
        host = self.headers.get("Host", "")
        if self.server.limits.local and not is_loopback(urlsplit(f"//{host}").hostname or ""):
            raise Refused(HTTPStatus.FORBIDDEN, "this page is for this machine: http://127.0.0.1")
        origin = self.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise Refused(HTTPStatus.FORBIDDEN, "requests of other pages are refused")

    def _page(self, request: Request) -> None:
        if request.path != "/":
            raise Refused(HTTPStatus(404), "there is only one page: /")
        nonce = secrets.token_urlsafe(16)
        template = Environment(loader=PackageLoader("sr_dist.tools", "."), autoescape=True).get_template("page.html")
        limits = self.server.limits
        text = template.render(
            labels=self.server.labels, scales=[network.scale for network in self.server.networks], types=TYPES, nonce=nonce,
            names=[network.name for network in self.server.networks], most_bytes=limits.bytes, most_pixels=limits.pixels,
        )  # fmt: skip
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src blob: data:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        self._send(text.encode(), "text/html; charset=utf-8", more={"Content-Security-Policy": policy})

    def _enlarge(self, request: Request) -> None:
        methods = {"/sr": Upscaler.image_file, "/bicubic": bicubic}
        if request.path not in methods:
            raise Refused(HTTPStatus(404), "pictures are sent to /sr or /bicubic")
        number = request.query.get("run", ["0"])[0]
        if not (number.isascii() and number.isdecimal() and len(number) < 5 and int(number) < len(self.server.networks)):
            raise Refused(HTTPStatus.BAD_REQUEST, f"run: there are {len(self.server.networks)}, counted from 0")
        network, method = self.server.networks[int(number)], methods[request.path]
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind not in TYPES:
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"only pictures are accepted: {', '.join(TYPES)}")
        path = self.server.folder / secrets.token_hex(8)
        try:
            self._receive(path)
            check_header(path, TYPES[kind], network.scale, self.server.limits)
            self._send(self._wait(Job(lambda: enlarged(path, network, method))), "image/png")
        finally:
            path.unlink(missing_ok=True)

    def _receive(self, path: Path) -> None:
        """Writes the body of the request to a file."""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()):
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "the size of the picture is missing")
        most = self.server.limits.bytes
        if len(length) > 15 or int(length) > most:
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the file has more than {most / 1e6:g} MB; --max_megabytes allows more"
            )
        left = int(length)
        try:
            with path.open("xb") as file:
                while left and (data := self.rfile.read1(min(left, 1 << 16))):
                    file.write(data)
                    left -= len(data)
        except TimeoutError:
            pass
        except OSError as problem:
            raise Refused(HTTPStatus.INSUFFICIENT_STORAGE, f"the picture cannot be stored: {problem.strerror}") from None
        if left:
            raise Refused(HTTPStatus.REQUEST_TIMEOUT, "the picture did not arrive in time")

    def _wait(self, job: Job) -> bytes:
        if not self.server.places.acquire(blocking=False):
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, f"{MOST_WAITING} pictures are waiting; try again later")
        try:
            self.server.jobs.put(job)
            while not job.done.wait(POLL):
                job.cancelled = self.server.ending.is_set() or self._is_gone()
                if job.cancelled:
                    raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "the page has ended; start it again")
        finally:
            self.server.places.release()
        if isinstance(job.result, Refused):
            raise job.result
        assert job.result is not None
        return job.result

    def _is_gone(self) -> bool:
        """Whether the browser has closed the connection, for example to send another picture."""
        if not select.select([self.connection], [], [], 0)[0]:
            return False
        try:
            return not self.connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def _read_rest(self) -> None:
        """Reads some of what a refused request sends: browsers report a lost connection if nobody reads, and no answer."""
        self._upload.end_after(5)
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            while self.rfile.read1(1 << 16):
                pass

    def _send(
        self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK, more: dict[str, str] | None = None
    ) -> None:  # fmt: skip
        with suppress(OSError):  # the browser has left
            self.send_response(status)
            headers = {
                "Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store",
                "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff",
                "Cross-Origin-Resource-Policy": "same-origin", **(more or {}),
            }  # fmt: skip
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            for begin in range(0, len(body), PIECE):  # a piece, not the whole picture, has SILENCE seconds to be taken
                self.wfile.write(body[begin : begin + PIECE])

    def log_message(self, *_: Any) -> None:
        """Only pictures are worth a line."""


def check_header(path: Path, form: str, scale: int, limits: Limits) -> None:
    """Refuses an image by its header, before any pixel is decoded."""
    try:
        with pixels.open_image(path) as image:
            (width, height), actual = image.size, image.format
            image_files.refuse_frames(image)
    except ImageFileError as problem:
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, str(problem)) from None
    except Exception:  # decoders raise many kinds of errors, and their texts have the path of our copy
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "the file is damaged, or no picture that can be read") from None
    if actual != form:
        raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"the file is {actual}, not {form}; give it the right suffix")
    most = min(limits.pixels, pixels.MAX_PIXELS // scale**2)
    if width * height > most:
        raise Refused(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the picture has {width} x {height} pixels, more than {most:,}; make it smaller, or use sr_dist.upscale",
        )


def enlarged(path: Path, network: Upscaler, method: Callable[[Upscaler, ImageFile], ImageFile]) -> bytes:
    """The PNG of an enlarged image file."""
    start = time.monotonic()
    image = image_files.read(path)
    result = method(network, image)
    png = image_files.encode(result, ".png")
    if method is not bicubic:
        (h, w), (height, width) = image.pixels.shape[-2:], result.pixels.shape[-2:]
        print(f"{w} x {h} -> {width} x {height} with {network.name}, {time.monotonic() - start:.1f} s", flush=True)
    return png


def bicubic(network: Upscaler, image: ImageFile) -> ImageFile:
    """MATLAB's, as in evaluations."""
    alpha = None if image.alpha is None else imresize(image.alpha.double(), network.scale).float()
    return replace(image, pixels=imresize(image.pixels.double(), network.scale).float(), alpha=alpha)
