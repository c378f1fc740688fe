"""`sr_dist.page`: a real server, asked by a real browser and by clients that mean harm."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import signal
import socket
import struct
import zlib
from contextlib import contextmanager

import numpy as np
import processes
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sr_dist import page as command
from sr_dist.core.plugins import PACKAGES
from sr_dist.core.resize import imresize
from sr_dist.models import trained
from sr_dist.models.metadata import generator_metadata
from sr_dist.tools import page

SECTION = {"name": "srugan", "widths": [4, 4], "num_blocks": 1, "num_dense_blocks": 1, "reduction": 2, "skip": "bicubic"}
SHARP = 0.25  # what the network `brighter` adds to every value


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two networks: bicubic interpolation x2, and the same and brighter."""
    root = tmp_path_factory.mktemp("page")
    section = trained.complete(SECTION, "generator")
    for name, extra in (("smooth", 0.0), ("brighter", SHARP)):
        tensors = trained.build(PACKAGES["generator"], section, 2, "generator").state_dict()
        last = [key for key in tensors if key.endswith("bias") and tensors[key].shape == (3,)][-1]
        tensors[last] = torch.full((3,), extra)
        save_file(tensors, root / f"{name}.safetensors", generator_metadata(section, 2))
    return root


class Served:
    def __init__(self, process: processes.Process, port: int, temporary) -> None:
        self.process, self.port, self.temporary = process, port, temporary

    def ask(self, method, path, body=None, **headers):
        """-> status, headers, body. `Content_Type` means Content-Type."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.putrequest(method, path, skip_host="Host" in headers)
        if body is not None and "Content_Length" not in headers:
            headers["Content_Length"] = str(len(body))
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders(body)
        answer = connection.getresponse()
        try:
            return answer.status, dict(answer.headers), answer.read()
        finally:
            connection.close()

    def error(self, *words, **headers):
        status, _, body = self.ask(*words, **headers)
        return status, json.loads(body)["error"]


@pytest.fixture(scope="module")
def served(runs, tmp_path_factory):
    with serving(runs, tmp_path_factory.mktemp("temporary")) as server:
        yield server


@contextmanager
def serving(runs, temporary):
    networks = ",".join(str(runs / f"{name}.safetensors") for name in ("smooth", "brighter"))
    words = (networks, "--port=0", "--max_pixels=4000", "--max_megabytes=1")
    process = processes.start(0, "sr_dist.page", *words, TMPDIR=str(temporary))
    out = process._out if isinstance(process, processes.Forked) else None
    assert out
    processes.wait_for(lambda: "Ctrl-C" in out.read_text(), process)
    port = int(re.match(r"http://127\.0\.0\.1:(\d+)/ \(smooth, x2, brighter, x2\)", out.read_text())[1])
    yield Served(process, port, temporary)
    processes.kill(process)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def elements(browser, selector):
    return browser.find_elements("css selector", selector)


def is_shown(browser, selector):
    return elements(browser, selector)[0].is_displayed()


def pixels_of(browser, selector):
    """The middle pixel of an image of the page."""
    return browser.execute_script(
        "const i = document.querySelector(arguments[0]), c = document.createElement('canvas');"
        "c.width = i.naturalWidth; c.height = i.naturalHeight; const x = c.getContext('2d'); x.drawImage(i, 0, 0);"
        "return [...x.getImageData(c.width >> 1, c.height >> 1, 1, 1).data]",
        selector,
    )


def look_at(browser, name):
    """Wide and narrow: nothing is cut off at the side. Screenshots are written where a person looks at them."""
    for width in (1400, 420):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 800}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        if folder := os.environ.get("SR_DIST_SCREENSHOTS"):
            browser.save_screenshot(f"{folder}/{name}_{width}.png")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.slow
def test_a_picture_is_uploaded_compared_and_downloaded(served, browser, tmp_path):
    Image.new("RGB", (48, 32), (100, 120, 140)).save(tmp_path / "grün <b>.png")
    (tmp_path / "notes.txt").write_text("no picture")
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    for log in ("performance", "browser"):
        browser.get_log(log)  # what came before
    browser.get(f"http://127.0.0.1:{served.port}/")
    assert [option.text for option in elements(browser, "#run option")] == ["smooth, x2", "brighter, x2"]
    inputs = elements(browser, "input[type=file]")

    inputs[1].send_keys(str(tmp_path / "notes.txt"))
    message = elements(browser, "#message")[0]
    processes.wait_for(lambda: "only JPEG" in message.text)
    inputs[1].send_keys(str(tmp_path / "grün <b>.png"))
    processes.wait_for(lambda: is_shown(browser, "#result"))
    assert "grün <b>.png: 48 x 32 to 96 x 64" in message.text
    assert pixels_of(browser, "img.left") == pixels_of(browser, "img.right") == [100, 120, 140, 255]

    browser.execute_script(
        "const r = arguments[0]; r.value = '1'; r.dispatchEvent(new Event('change'))", elements(browser, "#run")[0]
    )
    processes.wait_for(lambda: elements(browser, "#right")[0].text == "brighter, 96 x 64")
    processes.wait_for(lambda: is_shown(browser, "#result"))
    assert pixels_of(browser, "img.left") == [100, 120, 140, 255]
    assert pixels_of(browser, "img.right") == pytest.approx([164, 184, 204, 255], abs=1)  # + 255 / 4

    slider = elements(browser, ".stage input")[0]
    slider.send_keys(*["\ue012"] * 20)  # the left arrow: half a per cent each
    cut = browser.execute_script("return getComputedStyle(document.querySelector('.stage')).getPropertyValue('--cut')")
    assert cut.strip() == "40%"

    elements(browser, "#save")[0].click()
    result = tmp_path / "grün _b__brighter_x2.png"  # Chromium replaces what other systems do not allow
    processes.wait_for(result.exists)
    with Image.open(result) as image:
        assert image.size == (96, 64) and np.asarray(image)[32, 48] == pytest.approx([164, 184, 204], abs=1)

    look_at(browser, "result")
    browser.get(f"http://127.0.0.1:{served.port}/")
    look_at(browser, "start")
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    addresses = [entry["params"]["request"]["url"] for entry in sent if entry["method"] == "Network.requestWillBeSent"]
    assert len(addresses) >= 5
    assert all(address.startswith((f"http://127.0.0.1:{served.port}/", "blob:", "data:")) for address in addresses)


@pytest.mark.slow
def test_pictures_are_those_of_the_network_and_of_bicubic_interpolation(served, make_photo):
    photo = make_photo(3, 24, 40)
    planes = torch.from_numpy(photo).permute(2, 0, 1).double() / 255
    expected = (imresize(planes, 2).clamp(0, 1) * 255).permute(1, 2, 0).numpy()
    for path in ("/bicubic?run=1", "/sr?run=0", "/sr"):
        status, headers, body = served.ask("POST", path, png(photo), Content_Type="image/png")
        assert (status, headers["Content-Type"]) == (200, "image/png")
        actual = np.asarray(Image.open(io.BytesIO(body)), np.float64)
        assert np.abs(actual - expected).max() <= 0.51 + (0.1 if "sr" in path else 0)
    processes.wait_for(lambda: not list(served.temporary.glob("*/*")))  # the last one goes after its answer


@pytest.mark.slow
def test_requests_that_mean_harm_are_refused(served, make_photo):
    small, large = png(make_photo(1, 20, 20)), png(make_photo(1, 64, 64))
    bomb_header = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in ((b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"0")))
    )
    post = lambda body, **headers: served.error("POST", "/sr", body, **{"Content_Type": "image/png", **headers})  # noqa: E731
    assert post(large) == (413, "the picture has 64 x 64 pixels, more than 4,000; make it smaller, or use sr_dist.upscale")
    assert post(b"\x89PNG\r\n\x1a\n" + bomb_header)[0] in (413, 422)
    assert post(None, Content_Length="1000001") == (413, "the file has more than 1 MB; --max_megabytes allows more")
    assert post(b"0" * 1_000_001)[0] == 413
    assert post(None, Content_Length="9" * 30)[0] == 413
    assert post(None)[0] == 411
    assert post(None, Content_Length="-5")[0] == 411
    assert post(small, Content_Type="text/html")[0] == 415
    assert post(small, Content_Type="image/svg+xml")[0] == 415
    assert post(small, Content_Type="image/jpeg") == (415, "the file is PNG, not JPEG; give it the right suffix")
    assert post(b"%!PS-Adobe EPSF") == (422, "the file is damaged, or no picture that can be read")
    assert post(small[: len(small) // 2])[0] == 422
    assert post(small, Origin="http://evil.example")[0] == 403
    assert post(small, Host="evil.example")[0] == 403  # a name of theirs that leads to this machine
    assert served.error("GET", "/", Host="evil.example:7860")[0] == 403
    for number in ("2", "-1", "x", "%C2%B2", "0000000000", "9" * 5000):
        status = served.error("POST", f"/sr?run={number}", small, Content_Type="image/png")[0]
        assert status == 400, number
    for path in ("/../../etc/passwd", "/..%2f..%2fetc/passwd", "/page.html", "//etc/passwd", "/sr"):
        assert served.error("GET", path)[0] == 404, path
    assert served.error("POST", "/../sr", small, Content_Type="image/png")[0] == 404
    assert served.ask("PUT", "/sr", small)[0] == 501
    status, headers, body = served.ask("GET", "/", Host="localhost:9999")  # as through a tunnel of SSH
    assert status == 200 and "default-src 'none'" in headers["Content-Security-Policy"] and headers["X-Content-Type-Options"]
    assert not re.search(rb'(src|href)="?(https?:)?//', body)
    assert served.ask("POST", "/sr", small, Content_Type="image/png")[0] == 200
    processes.wait_for(lambda: not list(served.temporary.glob("*/*")))  # the last one goes after its answer


@pytest.mark.slow
def test_ctrl_c_ends_it_with_open_connections(runs, tmp_path, monkeypatch):
    """One client is silent, one has sent half a picture. A server that waited for them would not end in this test's time."""
    for name in ("SILENCE", "LONGEST_UPLOAD"):
        monkeypatch.setattr(page, name, 2 * processes.LONGEST)  # the server is a fork of this process
    with serving(runs, tmp_path) as served:
        end_with_open_connections(served)


def end_with_open_connections(served):
    silent = socket.create_connection(("127.0.0.1", served.port))
    half = socket.create_connection(("127.0.0.1", served.port))
    half.sendall(b"POST /sr HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\n123")
    processes.wait_for(lambda: list(served.temporary.glob("*/*")))
    processes.kill(served.process, signal.SIGINT)
    code, out, err = processes.finish(served.process)
    assert (code, err) == (0, "") and out.endswith("the page ends\n")
    assert list(served.temporary.iterdir()) == []
    silent.close()
    half.close()


def test_mistakes_are_one_line(run_commands, runs):
    taken = socket.create_server(("127.0.0.1", 0))
    network, port = str(runs / "smooth.safetensors"), taken.getsockname()[1]
    calls = [
        ([], "RUN[,RUN] is missing"),
        (["nowhere/run"], "RUN: no run folder or weights file 'nowhere/run'"),
        ([f"{network},{network}"], "names a run twice"),
        ([network, "--port=70000"], "port: "),
        ([network, f"--port={port}"], f"port: cannot listen on 127.0.0.1:{port}"),
        ([network, "--host=no.such.host.invalid"], "host: 'no.such.host.invalid' is no address of this machine"),
    ]
    answers = run_commands([("sr_dist.page", words) for words, _ in calls])
    taken.close()
    for answer, (words, text) in zip(answers, calls, strict=True):
        assert answer.code == 2 and text in answer.err and "Traceback" not in answer.err, (words, answer.err)
    assert "warning: host: everybody who reaches" in answers[-1].err


def test_only_addresses_of_this_machine_are_loopback():
    assert [command.is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8")] == [True] * 4
    assert [command.is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.3", "host.example")] == [False] * 4
