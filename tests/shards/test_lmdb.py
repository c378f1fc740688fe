"""BasicSR's LMDB folders and its lists of images, written in the test as BasicSR writes them, become shards."""

from __future__ import annotations

import builtins
import io
import os
import re

import lmdb
import numpy as np
import pytest
from made_shards import built, bytes_of, contents, keys_of, rejects_of
from PIL import Image

from sr_dist.core.errors import UserError

SIDES = {"0001_s001": 48, "0001_s002": 40, "baboon": 56, "sub/woman": 44}


def png(make_photo, number, side):
    file = io.BytesIO()
    Image.fromarray(make_photo(number, side, side)).save(file, "PNG")
    return file.getvalue()


def write_lmdb(folder, images, listed=None):
    """The key is the name without its ending; meta_info.txt has the name, height, width, channels and the compression."""
    folder.mkdir()
    with lmdb.open(str(folder), map_size=10_000_000) as environment, environment.begin(write=True) as transaction:
        for key, data in images.items():
            transaction.put(key.encode("ascii"), data)
    sizes = {key: Image.open(io.BytesIO(data)).size for key, data in images.items()}
    lines = [f"{key}.png ({sizes[key][1]},{sizes[key][0]},3) 1" for key in images]
    (folder / "meta_info.txt").write_text("\n".join([*lines, *(listed or ())]) + "\n")
    return folder


@pytest.fixture(scope="module")
def images(make_photo):
    return {key: png(make_photo, number, side) for number, (key, side) in enumerate(SIDES.items())}


@pytest.fixture(scope="module")
def small(make_photo):
    return {key: png(make_photo, number, side // 4) for number, (key, side) in enumerate(SIDES.items())}


def test_an_lmdb_gives_the_shards_of_its_files(tmp_path, images):
    """Byte for byte: the same samples in the same order, each with the bytes that were put in."""
    for key, data in images.items():
        (tmp_path / "files" / f"{key}.png").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / f"{key}.png").write_bytes(data)
    shards = built("lmdb", write_lmdb(tmp_path / "hr.lmdb", images), tmp_path / "out", name="x")
    of_files = built("folder", tmp_path / "files", tmp_path / "out2", name="x")
    assert contents(shards) == {f"{key}.png": data for key, data in images.items()}
    assert [path.read_bytes() for path in shards.paths()] == [path.read_bytes() for path in of_files.paths()]


def test_pairs_of_lmdbs_are_the_same_for_any_number_of_workers(tmp_path, images, small):
    hr, lr = write_lmdb(tmp_path / "hr.lmdb", images), write_lmdb(tmp_path / "lr.lmdb", small)
    shards = built("lmdb", hr, tmp_path / "out", lr=str(lr), per_shard="2", name="x")
    assert shards.manifest.scale == 4
    members = contents(shards)
    assert {name: members[name] for name in members if name.endswith(".lr.png")} == {
        f"{key}.lr.png": data for key, data in small.items()
    }
    (tmp_path / "lr.lmdb").rename(tmp_path / "moved.lmdb")
    built("lmdb", hr, tmp_path / "out2", lr=str(tmp_path / "moved.lmdb"), per_shard="2", name="x", workers="2")
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "out2")
    assert sorted(path.name for path in hr.iterdir()) == ["data.mdb", "lock.mdb", "meta_info.txt"]  # nothing is added to it


def test_an_lmdb_gives_16_bits_and_colours_as_they_are(tmp_path):
    deep, red = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.arange(48 * 48, dtype=np.uint16).reshape(48, 48) * 28).save(deep, "PNG")
    Image.new("RGB", (48, 48), (200, 10, 20)).save(red, "PNG")
    images = {"deep": deep.getvalue(), "red": red.getvalue()}
    of_files = tmp_path / "files"
    of_files.mkdir()
    for key, data in images.items():
        (of_files / f"{key}.png").write_bytes(data)
    shards = built("lmdb", write_lmdb(tmp_path / "hr.lmdb", images), tmp_path / "out", resize="24", name="x")
    members = contents(shards)
    assert members == contents(built("folder", of_files, tmp_path / "out2", resize="24", name="x"))
    assert Image.open(io.BytesIO(members["red.png"])).getpixel((3, 3)) == (200, 10, 20)


def test_what_is_not_in_both_lmdbs_is_listed(tmp_path, images, small):
    lacking = {key: data for key, data in small.items() if key != "baboon"}
    damaged = {**images, "0001_s001": images["0001_s001"][:200]}
    hr = write_lmdb(tmp_path / "hr.lmdb", images, listed=["lost.png (48,48,3) 1"])
    lr = write_lmdb(tmp_path / "lr.lmdb", lacking, listed=["lost.png (12,12,3) 1", "only.png (12,12,3) 1"])
    built("lmdb", hr, tmp_path / "out", lr=str(lr))
    assert rejects_of(tmp_path / "out") == {
        "baboon": "no LR image has this key", "only": "no HR image has this key",
        "lost": "meta_info.txt names it, but data.mdb has no such key",
    }  # fmt: skip
    with pytest.raises(UserError, match=r"^on_bad: "):
        built("lmdb", write_lmdb(tmp_path / "damaged.lmdb", damaged), tmp_path / "out2", on_bad="fail")
    lr_bad = write_lmdb(tmp_path / "lr_bad.lmdb", small | {"baboon": small["0001_s001"]})
    built("lmdb", tmp_path / "hr.lmdb", tmp_path / "out3", lr=str(lr_bad))
    assert rejects_of(tmp_path / "out3")["baboon"] == "the pair is not 4 times apart: HR 56 x 56, LR 12 x 12"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "data.mdb").unlink(), "'.*hr.lmdb' has no data.mdb, so it is no LMDB folder"),
        (lambda folder: (folder / "meta_info.txt").unlink(), "'.*hr.lmdb' has no meta_info.txt"),
        (lambda folder: (folder / "meta_info.txt").write_text(""), "'.*meta_info.txt' names no image"),
        (lambda folder: (folder / "data.mdb").write_bytes(b"no database" * 1000), "'.*data.mdb' cannot be opened: "),
        (lambda folder: os.truncate(folder / "data.mdb", 9000), "is cut short: it has 9000 "),
    ],
)  # fmt: skip
def test_a_damaged_lmdb_is_refused(tmp_path, images, damage, message):
    """A file that is cut short would end the process by SIGBUS."""
    damage(write_lmdb(tmp_path / "hr.lmdb", images))
    with pytest.raises(UserError, match=f"^INPUT: .*{message}"):
        built("lmdb", tmp_path / "hr.lmdb", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_lmdb_options_that_do_not_fit_are_refused(tmp_path, images, small):
    hr = write_lmdb(tmp_path / "hr.lmdb", images)
    with pytest.raises(UserError, match=r"^scale: is that of stored LR images; give --lr=FOLDER too"):
        built("lmdb", hr, tmp_path / "out", scale="2")
    with pytest.raises(UserError, match=r"^lr: '.*/no' has no data.mdb"):
        built("lmdb", hr, tmp_path / "out", lr=str(tmp_path / "no"))
    other = write_lmdb(tmp_path / "lr.lmdb", {f"x{key[:4]}": data for key, data in small.items()})
    with pytest.raises(UserError, match=r"^lr: no image of '.*/lr.lmdb' has the key of one of INPUT"):
        built("lmdb", hr, tmp_path / "out", lr=str(other))


def test_without_the_package_one_line_says_how_to_get_it(tmp_path, images, monkeypatch):
    hr = write_lmdb(tmp_path / "hr.lmdb", images)
    real = builtins.__import__

    def without(name, *rest, **named):
        if name == "lmdb":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=re.escape("SOURCE: 'lmdb' needs the package lmdb; pip install 'sr_dist[lmdb]'")):
        built("lmdb", hr, tmp_path / "out")


# --------------------------------------------------------------------------------------------------------------- lists


@pytest.fixture
def folders(tmp_path, images, small):
    for name, content in (("hr", images), ("lr", small)):
        for key, data in content.items():
            file = tmp_path / name / f"{key}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
    return tmp_path


def listed(folder, *lines):
    (folder / "list.txt").write_text("\n".join(lines) + "\n")
    return str(folder / "list.txt")


@pytest.mark.parametrize(
    "lines",
    [
        ("sub/woman.png (44,44,3)", "baboon.png (56,56,3)"),
        ("baboon.png", "", "./sub/woman.png", "baboon.png"),
        ("\ufeffbaboon.png", "sub/woman.png"),
    ],
    ids=["sizes", "names", "byte order mark"],
)
def test_a_list_takes_these_images_of_a_folder(folders, images, lines):
    shards = built("folder", folders / "hr", folders / "out", list=listed(folders, *lines))
    assert contents(shards) == {f"{key}.png": images[key] for key in ("baboon", "sub/woman")}
    assert str(folders) not in (folders / "out" / "manifest.json").read_text()


def test_a_list_gives_the_bytes_of_a_folder_with_these_images_alone(folders):
    built(
        "folder",
        folders / "hr",
        folders / "out",
        list=listed(folders, "baboon.png (56,56,3)", "0001_s002.png (40,40,3)"),
        name="x",
    )
    for name in ("0001_s001.png", "sub/woman.png"):
        (folders / "hr" / name).unlink()
    shards = built("folder", folders / "hr", folders / "out2", name="x")
    assert [path.read_bytes() for path in sorted((folders / "out").glob("*.tar"))] == [
        path.read_bytes() for path in shards.paths()
    ]


def test_images_of_a_list_that_do_not_exist_are_rejected(folders):
    shards = built("folder", folders / "hr", folders / "out", list=listed(folders, "baboon.png (56,56,3)", "gone.png (9,9,3)"))
    assert keys_of(shards) == ["baboon"] and rejects_of(folders / "out") == {"gone": "no image has this name"}


def test_a_list_of_pairs_takes_both_names(folders, images, small):
    """Real-ESRGAN's lists: both names are below one folder, and need not be alike."""
    (folders / "lr" / "baboon.png").rename(folders / "lr" / "monkey.png")
    lines = ["hr/baboon.png, lr/monkey.png", "hr/0001_s001.png, lr/0001_s001.png", "hr/0001_s002.png, lr/none.png"]
    shards = built("pairs", folders, folders / "out", list=listed(folders, *lines))
    assert contents(shards) == {
        "hr/baboon.png": images["baboon"], "hr/baboon.lr.png": small["baboon"],
        "hr/0001_s001.png": images["0001_s001"], "hr/0001_s001.lr.png": small["0001_s001"],
    }  # fmt: skip
    assert rejects_of(folders / "out") == {"hr/0001_s002": "no LR image has this name"}
    apart = [line.replace("hr/", "").replace("lr/", "") for line in lines[:2]]
    shards = built("pairs", folders / "hr", folders / "out2", lr=str(folders / "lr"), list=listed(folders, *apart))
    assert sorted(keys_of(shards)) == ["0001_s001", "baboon"]


def test_a_list_of_hr_names_selects_pairs(folders):
    """BasicSR's meta_info_file names HR images; their LR images are matched by name."""
    path = listed(folders, "baboon.png (56,56,3)", "0001_s001.png (48,48,3)", "gone.png (9,9,3)")
    shards = built("pairs", folders / "hr", folders / "out", lr=str(folders / "lr"), list=path)
    assert sorted(keys_of(shards)) == ["0001_s001", "baboon"]
    assert rejects_of(folders / "out") == {"gone": "no image has this name"}


@pytest.mark.parametrize(
    ("source", "lines", "message"),
    [
        ("folder", ["a.png, b.png"], "has two names on a line; the source 'pairs' reads lists of pairs"),
        ("folder", ["../a.png (1,1,3)"], "must be relative to the folder of images"),
        ("folder", ["/etc/a.png"], "must be relative to the folder of images"),
        ("folder", ["gone.png"], "no image of '.*' is in "),
        ("folder", [""], "names no image"),
        ("pairs", ["a.png, b.png", "c.png"], "lines with one name and lines with two"),
        ("pairs", ["a, b, c"], "line 1: 'a, b, c' is neither"),
        ("pairs", ["gone.png, gone.png"], "no pair of "),
        ("pairs", ["gone.png"], "no image of the list is in "),
    ],
)
def test_lists_that_cannot_be_are_refused(folders, source, lines, message):
    options = {"lr": str(folders / "lr")} if source == "pairs" else {}
    with pytest.raises(UserError, match=f"^list: .*{message}"):
        built(source, folders / "hr", folders / "out", list=listed(folders, *lines), **options)
    with pytest.raises(UserError, match=r"^list: '.*none.txt' cannot be read: "):
        built(source, folders / "hr", folders / "out", list=str(folders / "none.txt"), **options)
