"""The command sr_dist.fetch against a real server: weights, datasets with archives, --list, --check."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
from servers import serving

from sr_dist import fetch as command
from sr_dist.core import catalogue, fetch_file
from sr_dist.core.errors import UserError
from sr_dist.models import pretrained, published

WEIGHTS = bytes(range(256)) * 1000


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def tarred(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


@pytest.fixture
def store(tmp_path):
    (tmp_path / "server").mkdir()
    files = {
        "net.pth": WEIGHTS,
        "new.pth": WEIGHTS[::-1],
        "HR.zip": zipped({"DIV/0001.png": b"one", "DIV/0002.png": b"two"}),
        "more.tar.gz": tarred({"a/0003.png": b"three", "b/0004.png": b"four"}),
        "evil.zip": zipped({"../evil.png": b"evil"}),
        "labels.txt": b"0001 1\n",
    }
    for name, data in files.items():
        (tmp_path / "server" / name).write_bytes(data)
    with serving(tmp_path / "server") as server:
        yield server


@pytest.fixture
def run(store, tmp_path, monkeypatch, capfd):
    """`run("net", "--check")` -> exit code, stdout, stderr, with a table of the server's files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SR_DIST_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("torch.hub._hub_dir", None)
    monkeypatch.setattr(fetch_file, "sleep", lambda seconds: None)
    hr = (store.folder / "HR.zip").read_bytes()
    (tmp_path / "table.yaml").write_text(f"""
net:
  kind: weights
  files: [{{address: "{store.url}/net.pth", bytes: {len(WEIGHTS)}, sha256: {sha256(WEIGHTS)}, source: me}}]
  licence: MIT
  purpose: tests
  next: python -m sr_dist.upscale net photos enlarged
new:
  kind: weights
  files: [{{address: "{store.url}/new.pth"}}]
  licence: MIT
  purpose: tests
  next: python -m sr_dist.upscale {{weights}}/new.pth photos enlarged
photos:
  kind: data
  aliases: [pictures]
  files:
    - {{address: "{store.url}/HR.zip", md5: {hashlib.md5(hr).hexdigest()}, path: archives/HR.zip, unpack: photos/HR, source: me}}
    - {{address: "{store.url}/more.tar.gz", path: archives/more.tar.gz, unpack: photos/more}}
    - {{address: "{store.url}/labels.txt", path: photos/labels.txt, sha256: {sha256(b"0001 1" + bytes([10]))}, source: me}}
  licence: none
  purpose: tests of data
  next: python -m shards.build folder {{to}}/photos data/photos
evil:
  kind: data
  files: [{{address: "{store.url}/evil.zip", unpack: evil}}]
  licence: none
  purpose: tests of data
  next: nothing
gone:
  kind: data
  files: [{{address: "{store.url}/gone.zip"}}]
  licence: none
  purpose: tests of data
  next: nothing
""")

    def run_fetch(*words: str):
        capfd.readouterr()
        code = command.main([*words, "--table=table.yaml"])
        return code, *capfd.readouterr()

    return run_fetch


def test_weights_go_where_every_command_looks_for_them(run, store, tmp_path):
    code, out, err = run("net")
    assert (code, err) == (0, "")
    assert f"'{tmp_path}/weights/net.pth': fetched, 0.3 MB, sha256 {sha256(WEIGHTS)}, as published" in out
    assert "net: complete; licence: MIT\nnext: python -m sr_dist.upscale net photos enlarged\n" in out
    assert published.place("net", "METHOD") == tmp_path / "weights" / "net.pth"
    code, out, _ = run("net.pth,net")
    assert code == 0 and "complete, 0.3 MB" in out and store.requests["net.pth"] == 1


def test_weights_that_are_elsewhere_in_the_search_path_are_not_fetched_again(run, store, tmp_path):
    hub = tmp_path / "torch" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    (hub / "net.pth").write_bytes(WEIGHTS)
    assert run("net")[0] == 0 and store.requests["net.pth"] == 0


def test_unchecked_weights_are_trusted_once_and_compared_wherever_they_are_read(run, tmp_path):
    code, out, _ = run("new")
    assert code == 0 and "note: no published digest of 'new.pth' is known: it is trusted at this first use" in out
    path = tmp_path / "weights" / "new.pth"
    assert pretrained.verified(path, "METHOD") == path
    path.write_bytes(WEIGHTS)
    with pytest.raises(UserError, match=r"'.*new\.pth' is damaged or another file"):
        pretrained.verified(path, "METHOD")
    code, out, _ = run("new", "--check")
    assert code == 1 and out.startswith("damaged")
    code, _, err = run("new")
    assert code == 1 and err.startswith("error: new: ") and "delete it and give this command again" in err
    assert path.read_bytes() == WEIGHTS


def test_a_dataset_is_fetched_unpacked_and_left_alone_afterwards(run, store, tmp_path):
    code, out, err = run("pictures")
    assert (code, err) == (0, "")
    assert "next: python -m shards.build folder datasets/photos data/photos" in out
    folder = tmp_path / "datasets"
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    images = {"photos/HR/0001.png", "photos/HR/0002.png", "photos/more/a/0003.png", "photos/more/b/0004.png"}
    archives = {"archives/HR.zip", "archives/more.tar.gz"}
    assert files == images | archives | {"photos/labels.txt", "archives/HR.zip.json", "archives/more.tar.gz.json"}
    shutil.rmtree(folder / "photos" / "more")  # unpacked again from its archive
    assert run("photos")[0] == 0 and (folder / "photos/more/a/0003.png").read_bytes() == b"three"
    for archive in archives:
        (folder / archive).unlink()  # no longer needed
    code, out, _ = run("photos")
    assert code == 0 and out.count("unpacked in") == 2
    assert {name: store.requests[name] for name in ("HR.zip", "more.tar.gz", "labels.txt")} == dict.fromkeys(
        ("HR.zip", "more.tar.gz", "labels.txt"), 1
    )


def test_check_says_what_is_here_begun_missing_and_damaged(run, store, tmp_path):
    code, out, _ = run("--check")
    assert code == 0 and [line.split()[:2] for line in out.splitlines()] == [
        ["missing", name] for name in ("net", "new", "photos", "evil", "gone")
    ]
    store.faults["net.pth"] = ["drop", "404"]
    assert run("net")[0] == 1
    run("photos")
    _, out, _ = run("--check")
    assert [line.split()[0] for line in out.splitlines()][:3] == ["begun", "missing", "here"]
    assert run("photos", "--check")[0] == 0 and run("net", "--check")[0] == 1
    run("net")
    (tmp_path / "weights" / "net.pth").write_bytes(WEIGHTS[:-1])
    (tmp_path / "datasets" / "photos" / "HR" / "0001.png").unlink()
    code, out, _ = run("--check")
    assert code == 1 and [line.split()[0] for line in out.splitlines()][:3] == ["damaged", "missing", "damaged"]
    assert "its sha256 begins" in out and "has 1 files, 3 bytes, but had 2 files, 6 bytes when it was unpacked" in out


def test_files_brought_by_other_means_are_checked_and_unpacked(run, store, tmp_path):
    """As on a cluster without a network."""
    archives = tmp_path / "datasets" / "archives"
    archives.mkdir(parents=True)
    shutil.copy(store.folder / "HR.zip", archives)
    (archives / "more.tar.gz").write_bytes(b"half an archive")
    code, out, _ = run("photos", "--check")
    assert code == 1 and out.startswith("begun")
    code, out, err = run("photos")
    assert code == 1 and "more.tar.gz' cannot be unpacked" in err
    assert (tmp_path / "datasets" / "photos" / "HR" / "0001.png").exists() and store.requests["HR.zip"] == 0


def test_a_folder_that_this_command_did_not_make_is_not_touched(run, tmp_path):
    mine = tmp_path / "datasets" / "photos" / "HR" / "mine.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    code, _, err = run("photos")
    assert code == 1 and "exists, but was not unpacked from" in err and mine.read_bytes() == b"mine"


def test_an_archive_that_leads_out_of_its_folder_is_refused(run, tmp_path):
    code, _, err = run("evil")
    assert code == 1 and "holds '../evil.png', which leads out of the folder" in err
    assert not list(tmp_path.rglob("evil.png"))


def test_a_folder_in_place_of_a_file_is_named(run, tmp_path):
    (tmp_path / "weights" / "net.pth").mkdir(parents=True)
    code, out, _ = run("net", "--check")
    assert code == 1 and out.startswith("damaged  net") and "net.pth' is no file" in out
    code, _, err = run("net")
    assert code == 1 and err.startswith("error: net: ") and "net.pth' is no file" in err and err.count("\n") == 1


def test_failures_are_one_line_and_exit_code_1(run):
    code, _, err = run("gone")
    assert code == 1 and err.count("\n") == 1
    assert err.startswith("error: gone: 'gone.zip' could not be fetched from http://127.0.0.1:") and "404" in err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((), "NAME is missing; --list prints"),
        (("nett",), "NAME: unknown name 'nett'; did you mean 'net'?; --list prints all"),
        (("net", "--to=table.yaml"), "to: 'table.yaml' is a file"),
        (("net", "--chek"), "chek: unknown option"),
        (("net", "--list", "--check"), "check: not used by --list"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(run, words, text):
    code, _, err = run(*words)
    assert code == 2 and err.startswith(f"error: {text}") and err.count("\n") == 1


def test_the_list_says_what_each_is_checked_with(run):
    code, out, _ = run("--list")
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines() if line.startswith("  ") and line[2] != " "}
    assert "0.3 MB  sha256     tests" in lines["net"] and "size ?  unchecked  tests" in lines["new"]
    assert "unchecked" in lines["photos"] and "(also pictures)" in lines["photos"]


def test_the_list_of_the_package_is_the_table(capsys):
    assert command.main(["--list"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in catalogue.read())


def test_a_name_of_the_catalogue_stands_for_its_file_and_its_lack_names_the_command(run, tmp_path):
    with pytest.raises(pretrained.MissingWeights, match=r"^METHOD: .*python -m sr_dist\.fetch realesrgan_x2plus fetches them"):
        published.place("realesrgan_x2plus", "METHOD")
    file = tmp_path / "weights" / "RealESRGAN_x2plus.pth"
    file.parent.mkdir()
    file.write_bytes(b"another file")
    with pytest.raises(UserError, match=r"is damaged or another file: its sha256 begins \w+, not 49fafd45"):
        published.place("realesrgan_x2plus", "METHOD")
    assert Path(file).read_bytes() == b"another file"
