"""Archives appear whole or not at all, and nothing is written outside of their folder."""

from __future__ import annotations

import io
import shutil
import tarfile
import zipfile
from random import Random

import pytest

from sr_dist.core.unpack import BadArchive, unpack


def make_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                info.type, info.linkname = content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def make_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


IMAGES = {"DIV2K_train_LR/X4/0001x4.png": b"one", "DIV2K_train_LR/X4/0002x4.png": b"three"}


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_files_lie_without_the_folders_that_all_share(tmp_path, kind):
    archive = tmp_path / f"a.{kind}"
    make_zip(archive, IMAGES) if kind == "zip" else make_tar(archive, IMAGES, "w:gz" if kind == "tar.gz" else "w")
    assert unpack(archive, tmp_path / "out") == {"files": 2, "bytes": 8}
    assert tree(tmp_path / "out") == {"0001x4.png": b"one", "0002x4.png": b"three"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [archive.name, "out"]


def test_what_macos_adds_is_left_out(tmp_path):
    archive = make_zip(tmp_path / "a.zip", {"Set5/a.png": b"a", "__MACOSX/Set5/._a.png": b"x", "Set5/.DS_Store": b"x"})
    unpack(archive, tmp_path / "out")
    assert tree(tmp_path / "out") == {"a.png": b"a"}


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil", "..\\evil", "C:/evil"])
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_paths_that_lead_out_are_refused(tmp_path, name, make):
    archive = make(tmp_path / "archive", {"good.png": b"good", name: b"evil"})
    if make is make_zip and name not in zipfile.ZipFile(archive).namelist():
        pytest.skip("zipfile writes another name")
    with pytest.raises(BadArchive, match="leads out of the folder"):
        unpack(archive, tmp_path / "in" / "out")
    assert list((tmp_path / "in").iterdir()) == [] and not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_a_file_without_a_name_is_refused(tmp_path, make):
    """A folder called `.` is usual: tar makes one of `tar -C folder .`"""
    archive = make(tmp_path / "archive", {"good.png": b"good", "./.": b"?"})
    with pytest.raises(BadArchive, match="holds a file without a name"):
        unpack(archive, tmp_path / "out")
    with tarfile.open(tmp_path / "usual.tar", "w") as tar:
        tar.add(made_folder(tmp_path / "set"), arcname=".")
    assert unpack(tmp_path / "usual.tar", tmp_path / "out") == {"files": 1, "bytes": 1}


def made_folder(folder):
    folder.mkdir()
    (folder / "a.png").write_bytes(b"a")
    return folder


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar"])
def test_an_archive_that_grows_without_measure_is_refused(tmp_path, kind, monkeypatch):
    """A megabyte of zeros in a kilobyte; the last one is a sparse file, whose zeros the tar does not store."""
    monkeypatch.setattr("sr_dist.core.unpack.SMALL", 100_000)
    archive = tmp_path / f"bomb.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
            opened.writestr("zeros", bytes(10**6))
    elif kind == "tar.gz":
        make_tar(archive, {"zeros": bytes(10**6)}, "w:gz")
    else:
        with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
            info = tarfile.TarInfo("zeros")
            info.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(10**8)}
            tar.addfile(info)
    with pytest.raises(BadArchive, match="holds more than 200 times its size; nothing is unpacked"):
        unpack(archive, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [archive.name]


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz", "tar.bz2", "zip", "lzma.zip"])
def test_whatever_byte_is_damaged_it_is_a_bad_archive_or_none(tmp_path, kind):
    """Each decompressor has errors of its own."""
    random, whole = Random(1), tmp_path / "whole"
    members = {f"set/{name}.png": random.randbytes(500) for name in "abc"}
    if kind.endswith("zip"):
        with zipfile.ZipFile(whole, "w", zipfile.ZIP_LZMA if kind == "lzma.zip" else zipfile.ZIP_DEFLATED) as opened:
            for name, content in members.items():
                opened.writestr(name, content)
    else:
        make_tar(whole, members, f"w:{kind[4:]}")
    data, refused = whole.read_bytes(), 0
    for _ in range(60):
        damaged = bytearray(data)
        damaged[random.randrange(len(damaged))] ^= random.randrange(1, 256)
        (tmp_path / "damaged").write_bytes(damaged)
        try:
            unpack(tmp_path / "damaged", tmp_path / "out")
        except BadArchive:
            refused += 1
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert refused > 5


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    archive = make_tar(tmp_path / "a.tar", {"a.png": b"a", "link": (kind, "/etc/passwd"), "link/b.png": b"b"})
    with pytest.raises(BadArchive, match="holds 'link', which is no file"):
        unpack(archive, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_links_in_a_zip_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(BadArchive, match="holds 'link', which is no file"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


@pytest.mark.parametrize("damage", ["cut", "flip", "text", "empty", "twice", "header"])
@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_damaged_archive_leaves_nothing(tmp_path, damage, kind):
    archive, members = tmp_path / "a", {f"{i}.png": bytes([i]) * 5000 for i in range(9)}
    make_zip(archive, members) if kind == "zip" else make_tar(archive, members, "w:gz")
    data = archive.read_bytes()
    middle = len(data) // 2
    contents = {"cut": data[:middle], "flip": data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :], "text": b"<html>"}
    archive.write_bytes(contents.get(damage, data))
    if damage == "empty":
        make_zip(archive, {}) if kind == "zip" else make_tar(archive, {}, "w:gz")
    if damage == "header":  # of the fifth member, in a tar without compression
        data = bytearray(make_tar(archive, members).read_bytes())
        data[4 * (512 + 5120) + 5] ^= 255
        archive.write_bytes(data)
    if damage == "twice":
        with tarfile.open(archive, "w") as tar:
            for _ in range(2):
                tar.addfile(tarfile.TarInfo("a.png"), io.BytesIO())
    with pytest.raises(BadArchive, match=r"cannot be unpacked|is damaged|holds no files"):
        unpack(archive, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_remains_of_a_killed_process_are_removed(tmp_path):
    (tmp_path / ".out.unpacking").mkdir()
    (tmp_path / ".out.unpacking" / "old.png").write_bytes(b"old")
    unpack(make_zip(tmp_path / "a.zip", {"a.png": b"a"}), tmp_path / "out")
    assert tree(tmp_path / "out") == {"a.png": b"a"}
