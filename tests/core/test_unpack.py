"""Archives appear whole or not at all, and nothing is written outside of their folder."""

from __future__ import annotations

import io
import tarfile
import zipfile

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
