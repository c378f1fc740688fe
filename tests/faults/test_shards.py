"""Shards, manifests and indexes that are wrong, by mistake or on purpose: one line, no guess, nothing lost without a word."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
import tracemalloc
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from instructions import instructions
from made_shards import handmade
from processes import ROOT, environment, small_gan
from servers import serving

from shards import show, verify
from shards.adopt import adopt
from shards.image_header import Rejected, inspect_image, pillow_settings
from shards.pixels import Preparation
from sr_dist.core.config import typed
from sr_dist.core.errors import UserError
from sr_dist.data.format import Index, ShardError, index_bytes, open_shards
from sr_dist.data.reader import ShardReader, decode
from sr_dist.data.remote import download, sources
from sr_dist.data.remote.cache import Cache
from sr_dist.data.remote.sources import open_shards as open_remote


@pytest.fixture
def copy(photo_shards, tmp_path) -> Path:
    return Path(shutil.copytree(photo_shards, tmp_path / "copy"))


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    monkeypatch.setattr(download, "sleep", lambda seconds: None)
    sources._fetched.cache_clear()


def change_manifest(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_row(folder: Path, row: int = 3, **values: object) -> None:
    """Another index of the second shard with a right checksum."""
    path = folder / "photos-000001.idx"
    index = Index(path)
    names = list(index._columns)
    rows = [
        {name: index[name][i].tobytes() if name in ("hash", "attributes") else index[name][i] for name in names}
        for i in range(len(index))
    ]
    path.write_bytes(index_bytes([{**each, **(values if i == row else {})} for i, each in enumerate(rows)], 1))


# -------------------------------------------------------------------------------------------------- values out of range


def test_a_smallest_side_that_is_not_true_is_refused(run_commands, copy, tmp_path):
    """Before, edges were repeated silently although data.small is refuse."""
    change_manifest(copy, min_side=5000)
    (answer,) = run_commands([("sr_dist.train", small_gan(copy, tmp_path, data__crop=256, steps=1))])
    assert answer.code == 2
    assert answer.err.startswith(f"error: '{copy}/photos-000000.idx', sample 0: it is ")
    assert "but the manifest's min_side is 5000; the index is damaged, or not the manifest's" in answer.err


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"class": 3}, "its class is 3, but the manifest names 3"),
        ({"class": -7}, "its class is -7; classes are numbered from 0, and -1 is none"),
        ({"mode": 5}, "its mode is 5; the last is 4"),
        ({"hr_offset": 2**64 - 1}, "its hr image, .* bytes at 18446744073709551615, is not inside the tar"),
        ({"hr_bytes": 2**32 - 1}, "its hr image, 4294967295 bytes at .*, is not inside the tar"),
        ({"hr_bytes": 0}, "its image is empty"),
        ({"width": 0}, "its image is 0 x "),
        ({"lr_bytes": 9}, "its LR image is 0 x 0"),
        ({"lr_bytes": 9, "lr_width": 9, "lr_height": 9}, "its LR image is 9 x 9, but the manifest's scale is none"),
        ({"key": b"caf\xe9"}, r"the key b'caf\\xe9' is not UTF-8"),
    ],
)
def test_values_out_of_range_are_refused_when_an_index_is_opened(copy, value, message):
    change_row(copy, **value)
    with pytest.raises(ShardError, match=rf"photos-000001\.idx'.*{message}"):
        open_shards(str(copy)).check_indexes()


def test_every_command_names_such_an_index(run_commands, copy, tmp_path):
    change_row(copy, hr_offset=2**64 - 1)
    calls = [("sr_dist.train", small_gan(copy, tmp_path)), ("shards.show", [str(copy)]), ("shards.verify", [str(copy)])]
    calls.append(("sr_dist.evaluate", ["bicubic", f"--data={copy}", "--scale=2", f"--out={tmp_path / 'out'}"]))
    for (module, _), answer in zip(calls, run_commands(calls), strict=True):
        assert answer.code == (1 if module == "shards.verify" else 2), answer.err
        assert "photos-000001.idx', sample 3: its hr image" in answer.out + answer.err
        assert "Traceback" not in answer.err


# ------------------------------------------------------------------------------------------------- names and nesting


@pytest.mark.parametrize("changes", [{"tars": "a\0b"}, {"tars": "\ud800"}, {"tars": "a\x1b[2J"}])
def test_a_place_of_tars_that_no_path_can_be_is_refused(copy, changes):
    change_manifest(copy, **changes)
    with pytest.raises(ShardError, match=r"manifest\.json': .* has an unsafe name"):
        open_shards(str(copy))


def test_a_name_of_a_shard_that_no_path_can_be_is_refused(copy):
    shards = json.loads((copy / "manifest.json").read_text())["shards"]
    change_manifest(copy, shards=[{**shards[0], "name": "a\0.tar"}, *shards[1:]])
    with pytest.raises(ShardError, match=r"'a\\x00\.tar' has an unsafe name"):
        open_shards(str(copy))


@pytest.mark.parametrize(
    ("text", "message"),
    [("[" * 100_000, "nested too deeply"), ('{"a":' * 100_000, "nested too deeply"), ("9" * 10_000, "cannot be read")],
)
def test_a_manifest_that_the_parser_cannot_take_is_one_line(copy, text, message):
    (copy / "manifest.json").write_text(text)
    with pytest.raises(ShardError, match=message):
        open_shards(str(copy))


def test_braces_that_stand_for_too_many_names_are_refused(copy):
    for pattern in ("{0..9999999999}.tar", "{0..9999}{0..9999}.tar"):
        with pytest.raises(UserError, match="stands for more than 1000000 names"):
            open_shards(f"{copy}/{pattern}")


# ----------------------------------------------------------------------------------------------------------- sizes


class Endless(BaseHTTPRequestHandler):
    """Sends without end, after the shards' own manifest where the server has one."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        manifest = self.server.manifest  # type: ignore[attr-defined]
        if manifest and self.path.endswith("manifest.json"):
            self.wfile.write(manifest)
            return
        while True:
            self.wfile.write(bytes(1 << 20))
            self.server.sent += 1 << 20  # type: ignore[attr-defined]

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def endless():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endless)
    server.daemon_threads, server.manifest, server.sent = True, b"", 0  # type: ignore[attr-defined]
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_manifest_without_end_is_given_up(endless, tmp_path):
    with pytest.raises(UserError, match="sends more than 64000000 bytes"):
        open_remote(f"http://127.0.0.1:{endless.server_port}", "data.train", Cache(tmp_path / "cache", 10**9))
    assert endless.sent < 100e6  # what the sockets hold beside it


def test_an_index_larger_than_its_samples_need_is_given_up(endless, photo_shards, tmp_path):
    endless.manifest = (photo_shards / "manifest.json").read_bytes()
    with pytest.raises(UserError, match=r"the index .*sends more than \d{4} bytes, the most"):
        open_remote(f"http://127.0.0.1:{endless.server_port}", "data.train", Cache(tmp_path / "cache", 10**9))


def test_large_indexes_are_not_held_in_memory_while_they_are_fetched(endless, photo_shards, tmp_path):
    """Eight at once, of 30 MB each before the limit of their samples is reached."""
    manifest = json.loads((photo_shards / "manifest.json").read_text())
    entries = [{**manifest["shards"][0], "name": f"{i}.tar", "samples": 28_000} for i in range(8)]
    endless.manifest = json.dumps({**manifest, "shards": entries, "samples": 8 * 28_000}).encode()
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"the index .*sends more than 3\d{7} bytes, the most"):
            open_remote(f"http://127.0.0.1:{endless.server_port}", "data.train", Cache(tmp_path / "cache", 10**9))
        assert tracemalloc.get_traced_memory()[1] < 40e6
    finally:
        tracemalloc.stop()
    assert list((tmp_path / "cache").rglob("*.new")) == []


def test_local_files_have_the_same_limits(copy):
    """Sparse files: they take no room on the disk."""
    for name, size, message in (
        ("photos-000000.idx", 5 * 10**9, "an index has at most 4000000000"),
        ("manifest.json", 10**8, "a manifest has at most 64000000"),
    ):
        with open(copy / name, "r+b") as file:
            file.truncate(size)
        with pytest.raises(ShardError, match=message):
            open_shards(str(copy)).check_indexes()


def test_brackets_in_a_url_are_no_pattern(photo_shards, tmp_path):
    """curl would request 300 files for one name."""
    folder = Path(shutil.copytree(photo_shards, tmp_path / "copy"))
    with serving(folder) as store:
        change_manifest(folder, tars=f"{store.url}/[1-300]")
        shards = open_remote(store.url, "data.train", Cache(tmp_path / "cache", 10**9))
        with pytest.raises(ShardError, match="could not be fetched"):
            shards.open(0)
        assert set(store.requests) <= {"manifest.json", "[1-300]/photos-000000.tar", *(p.name for p in folder.glob("*.idx"))}


class Rude(BaseHTTPRequestHandler):
    """Answers 404 with commands to the terminal, and from the second request on with no HTTP at all."""

    def do_GET(self) -> None:
        self.server.requests += 1  # type: ignore[attr-defined]
        status = b"HTTP/1.0 404 No\x1b[31mRED\x07\r\n\r\n" if self.server.requests == 1 else b"GARBAGE\r\n\r\n"  # type: ignore[attr-defined]
        self.wfile.write(status)

    def log_message(self, *_) -> None:
        pass


def test_the_status_of_a_refusal_costs_no_second_request(tmp_path):
    """Another library made one, and its errors were tracebacks, some with the password of the URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Rude)
    server.requests = 0  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        with pytest.raises(ShardError) as caught:
            open_remote(f"http://me:s3cret@127.0.0.1:{server.server_port}/x", "data.train", Cache(tmp_path / "cache", 10**9))
    finally:
        server.shutdown()
        server.server_close()
    assert str(caught.value) == (
        f"data.train: the manifest 'http://***@127.0.0.1:{server.server_port}/x/manifest.json' could not be fetched: "
        "the server answers 404 Not Found"
    )
    assert server.requests == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:99999/x", "the URL is malformed"),
        ("{}/loop", "too many redirects"),
        ("{}/file", "the protocol is unknown"),
    ],
)
def test_what_curl_can_never_fetch_is_not_tried_again(tmp_path, url, message):
    class Redirect(Rude):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd" if "file" in self.path else self.path)
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Redirect)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        with pytest.raises(ShardError, match=f"could not be fetched: {message}"):
            open_remote(url.format(f"http://127.0.0.1:{server.server_port}"), "data.train", Cache(tmp_path / "cache", 10**9))
    finally:
        server.shutdown()
        server.server_close()


# --------------------------------------------------------------------------------------------------- cut short in use


def test_an_index_that_is_cut_short_in_use_kills_no_process(copy):
    """What `cp` over it does. With a mapped file, the process ended by SIGBUS."""
    program = (
        "import os, sys; from sr_dist.data.format import open_shards; from sr_dist.data.reader import ShardReader\n"
        "reader = ShardReader(open_shards(sys.argv[1])); reader.index(0); os.truncate(sys.argv[1] + '/photos-000000.idx', 0)\n"
        "print(len(reader.read(0, 7, 'hr')) > 0, reader.key(0, 7) != '')\n"
        "try: ShardReader(reader.shards).index(0)\n"
        "except ValueError as problem: print(problem)"
    )
    line = [sys.executable, "-c", program, str(copy)]
    result = subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert result.returncode == 0, result
    assert result.stdout.splitlines() == ["True True", f"'{copy}/photos-000000.idx' is not an index of sr_dist"]


def test_indexes_in_memory_are_few(copy, monkeypatch):
    monkeypatch.setattr("sr_dist.data.reader.INDEX_BYTES", 1)
    reader = ShardReader(open_shards(str(copy)))
    for shard in (0, 1, 2, 0):
        assert len(reader.index(shard)) == 8
    assert list(reader._indexes) == [0]


def test_opening_an_index_takes_as_many_instructions_for_1000_samples_as_for_10(tmp_path):
    """2,022, about 0.1 ms, so 1.28 million samples open in less than a second."""
    counts = []
    for number in (10, 1000):
        rows = [{"key": b"n%05d" % i, "width": 9, "height": 9, "hr_bytes": 9, "class": -1} for i in range(number)]
        folder = tmp_path / str(number)
        folder.mkdir()
        shards = open_shards(str(handmade(folder, [b"123456789"], sizes=[(9, 9)])))
        (folder / "t-000000.idx").write_bytes(index_bytes(rows, 1))
        shards.manifest.__dict__["shards"] = (shards.manifest.shards[0].model_copy(update={"samples": number}),)
        assert len(shards.index(0)) == number
        counts.append(instructions(lambda shards=shards: shards.index(0)))
    assert counts[0] == counts[1]


# ------------------------------------------------------------------------------------------------------ tars of others


def rejects_of(folder: Path) -> dict[str, str]:
    return {row["key"]: row["reason"] for row in map(json.loads, (folder / "rejects.jsonl").read_text().splitlines())}


@pytest.fixture
def linked(tmp_path, make_photo, image_bytes) -> Path:
    """A tar by GNU tar of a folder in which files are linked: an image and a class twice, and links to what is not in it."""
    folder = tmp_path / "files"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate("ac"):
        (folder / f"{name}.png").write_bytes(image_bytes(make_photo(number, 32, 32)))
        (folder / f"{name}.cls").write_text(str(number))
    os.link(folder / "a.png", folder / "b.png")
    os.link(folder / "c.cls", folder / "d.cls")
    (folder / "d.png").symlink_to("a.png")
    (folder / "more" / "e.png").symlink_to("../c.png")
    (folder / "f.png").symlink_to("/etc/hostname")
    (folder / "g.png").symlink_to("later.png")
    os.mkfifo(folder / "h.png")
    names = ["a.png", "a.cls", "b.png", "c.png", "c.cls", "d.png", "d.cls", "more/e.png", "f.png", "g.png", "h.png"]
    subprocess.run(["tar", "cf", tmp_path / "t-000000.tar", "-C", folder, *names], check=True)
    return tmp_path / "t-000000.tar"


def test_links_in_a_tar_are_followed_or_named(linked, tmp_path):
    """Before, b was missing without a word, and d had no class."""
    adopt(tmp_path / "out", [str(linked)], None, None, 1)
    shards = open_shards(str(tmp_path / "out"))
    index, reader = shards.index(0), ShardReader(shards)
    keys = [key.decode() for key in index["key"]]
    assert dict(zip(keys, index["class"].tolist(), strict=True)) == {"a": 0, "b": -1, "c": 1, "d": 1, "more/e": -1}
    images = {key: bytes(reader.read(0, row, "hr")) for row, key in enumerate(keys)}
    assert images["a"] == images["b"] == images["d"] != images["c"] == images["more/e"]
    assert rejects_of(tmp_path / "out") == {
        "f": "'f.png' is a link to '/etc/hostname', which is no earlier member of the tar",
        "g": "'g.png' is a link to 'later.png', which is no earlier member of the tar",
        "h": "'h.png' is neither a plain file nor a link",
    }


def test_a_key_of_a_megabyte_is_rejected_by_name(tmp_path, make_photo, image_bytes):
    """An index has a column as wide as its longest key: with 400 samples it had 401 MB."""
    with tarfile.open(tmp_path / "t-000000.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for number, name in enumerate(["a" * 1024, "b" * 1025, "c" * 10**6, "d"]):
            data = image_bytes(make_photo(number, 16, 16))
            member = tarfile.TarInfo(f"{name}.png")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    adopt(tmp_path / "out", [str(tmp_path / "t-000000.tar")], None, None, 1)
    assert [len(key) for key in open_shards(str(tmp_path / "out")).index(0)["key"]] == [1024, 1]
    assert (tmp_path / "out" / "t-000000.idx").stat().st_size < 3000
    reasons = list(rejects_of(tmp_path / "out").values())
    assert [reason.split(";")[0] for reason in reasons] == ["its key has 1025 bytes", "its key has 1000000 bytes"]
    assert (tmp_path / "out" / "rejects.jsonl").stat().st_size < 4000


def test_an_index_with_wider_keys_is_refused(copy):
    path = copy / "photos-000000.idx"
    data = bytearray(path.read_bytes())
    data[12:16] = (1025).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(ShardError, match=r"and keys of 1025; an index has at most .* and keys of 1 to 1024"):
        open_shards(str(copy)).index(0)


# ------------------------------------------------------------------------------------------------------------ pixels


def blank_png(width: int, height: int) -> bytes:
    """A PNG of one bit per pixel, which is quick to write and to read."""
    rows = zlib.compress(bytes(width // 8 + 1) * height, 1)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def test_training_reads_what_a_build_takes(monkeypatch):
    """190 megapixels are below the limit of a build; Pillow's own, 179, made training call them damaged."""
    data = blank_png(19_000, 10_000)
    with pillow_settings():
        assert inspect_image(data).width == 19_000
    converted = []
    monkeypatch.setattr("sr_dist.data.reader.to_tensor", lambda image, channels: converted.append(image.size))
    decode(data, 1)
    assert converted == [(19_000, 10_000)]


def test_more_pixels_are_refused_by_the_header_alone(image_bytes, make_photo):
    for data in (blank_png(20_000, 10_001), bytearray(image_bytes(make_photo(1, 16, 16), "JPEG"))):
        if data[:2] == b"\xff\xd8":
            data[data.index(b"\xff\xc0") + 5 : data.index(b"\xff\xc0") + 9] = struct.pack(">HH", 65500, 65500)
        with pillow_settings(), pytest.raises(Rejected, match="is more than 200000000 pixels"):
            inspect_image(bytes(data))
        with pytest.raises(RuntimeError, match="is more than 200000000 pixels"):
            decode(data, 3)
    with pytest.raises(UserError, match="max_pixels: input should be less than or equal to 200000000"):
        typed(Preparation, {"max_pixels": "200000001"})


# ---------------------------------------------------------------------------------------------- what shards may print and write


def test_show_writes_through_no_link_and_over_no_other_file(copy, tmp_path, capsys):
    precious = tmp_path / "precious.png"
    precious.write_text("mine")
    (copy / "contact_sheet.png").symlink_to(precious)
    for _ in range(2):
        assert show.main([str(copy), "--num=1"]) == 0
    assert not (copy / "contact_sheet.png").is_symlink() and (copy / "contact_sheet.png").stat().st_size > 100
    assert show.main([str(copy), "--num=1", f"--picture={precious}"]) == 2
    assert capsys.readouterr().err == f"error: picture: '{precious}' exists; name a new file\n"
    assert precious.read_text() == "mine"
    assert show.main([str(copy), "--num=1", f"--picture={tmp_path / 'new.jpg'}"]) == 0
    assert show.main([str(copy), "--num=1", f"--picture={tmp_path / 'new.xyz'}"]) == 2


def test_names_reach_no_terminal_as_commands(copy, capsys):
    change_manifest(copy, classes=["\x1b[2J\x9b0ma", "b\r\nerror: x", "c"])
    assert show.main([str(copy), "--num=1"]) == 0
    out = capsys.readouterr().out
    assert r"\x1b[2J\x9b0ma" in out and r"b\r\nerror: x" in out and not {"\x1b", "\r"} & set(out)
    change_manifest(copy, min_side="\x1b[31m")
    assert show.main([str(copy)]) == 2
    assert "\x1b" not in capsys.readouterr().err
    assert str(UserError("a\x1b\x07\r\x7f\nb")) == "a\\x1b\\x07\\r\\x7f\nb"


def test_show_hides_the_password_of_the_tars(copy, capsys):
    change_manifest(copy, tars="http://me:s3cret@127.0.0.1:1/x")
    show.main([str(copy), "--num=1"])
    printed = capsys.readouterr()
    assert "s3cret" not in printed.out + printed.err and "the tars are at http://***@127.0.0.1:1/x" in printed.out


@pytest.mark.parametrize("name", ["manifest.json", "photos-000000.idx"])
def test_pipes_and_devices_are_no_files(copy, name):
    for make in (os.mkfifo, lambda path: os.symlink("/dev/zero", path)):
        (copy / name).unlink()
        make(copy / name)
        with pytest.raises(ShardError, match=rf"{name}' cannot be read: .*it is no regular file"):
            open_shards(str(copy)).check_indexes()


def test_an_index_that_lies_about_its_images_is_found(copy, capsys):
    rows = ({"width": 99}, {"mode": 1}, {"hash": bytes(16)})
    messages = ("but the index says 99 x", "but the index says L", "does not have the hash in the index")
    for change, message in zip(rows, messages, strict=True):
        change_row(copy, **change)
        assert verify.main([str(copy), "--deep"]) == 1
        assert message in capsys.readouterr().out
    change_row(copy, width=99)
    with pytest.raises(ShardError, match="does not have the size in the index"):
        ShardReader(open_shards(str(copy))).image(1, 3, "hr", 3)
