"""Adoption of tars that other programs wrote, and damaged tars, which end in one line."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_shards import built, bytes_of, keys_of, rejects_of
from PIL import Image

from shards import index, show, verify
from shards.adopt import adopt
from shards.tar_scan import class_number
from sr_dist.core.errors import UserError
from sr_dist.data.format import ShardError, open_shards, read_manifest


def tar_of(path, members, form=tarfile.GNU_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uname = len(data), 1_700_000_000, "somebody"
            tar.addfile(info, io.BytesIO(data))


def run(command, *words) -> int:
    try:
        return command.main([str(word) for word in words])
    except SystemExit as end:
        return 1 if isinstance(end.code, str) else int(end.code or 0)


def adopted(out, *patterns, **options):
    adopt(out, [str(pattern) for pattern in patterns], options.get("classes"), options.get("tars"), 1)
    return open_shards(str(out))


@pytest.fixture(scope="module")
def jpegs(make_photo, image_bytes):
    return [image_bytes(make_photo(i, 32 + 4 * (i % 3), 40), "JPEG") for i in range(9)]


def image_of(shards, shard, row):
    entry = shards.index(shard)
    with open(shards.paths()[shard], "rb") as tar:
        tar.seek(int(entry["hr_offset"][row]))
        return tar.read(int(entry["hr_bytes"][row]))


# ------------------------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("away", [False, True])
def test_tars_of_imagenet_wds_are_adopted(tmp_path, jpegs, form, away):
    for number in range(3):
        rows = [(f"n0{i}/n0{i}_{'x' * 70}{i}", jpegs[i], i % 4) for i in range(number, 9, 3)]
        members = [m for key, data, label in rows for m in ((f"{key}.jpeg", data), (f"{key}.cls", f"{label}\n".encode()))]
        tar_of(tmp_path / "tars" / f"train-{number:04d}.tar", members, form)
    out = tmp_path / ("out" if away else "tars")
    shards = adopted(out, f"{tmp_path}/tars/train-{{0000..0002}}.tar")
    assert shards.manifest.samples == 9
    assert shards.manifest.classes == ("0", "1", "2", "3")
    assert shards.manifest.min_side == 32
    assert shards.manifest.tars == (str(tmp_path / "tars") if away else None)
    for shard in range(3):
        for row in range(3):
            number = shard + 3 * row
            assert shards.index(shard)["key"][row].decode() == f"n0{number}/n0{number}_{'x' * 70}{number}"
            assert image_of(shards, shard, row) == jpegs[number]
            assert shards.index(shard)["class"][row] == number % 4
    shards.check_sizes()
    assert run(verify, out, "--deep") == 0
    assert run(show, out, f"--picture={tmp_path}/sheet.png") == 0


def test_tars_of_img2dataset_are_adopted(tmp_path, jpegs, image_bytes, make_photo):
    others = {"webp": image_bytes(make_photo(20, 32, 32), "WEBP"), "png": image_bytes(make_photo(21, 32, 32))}
    members = []
    for number, (suffix, data) in enumerate([*(("jpg", data) for data in jpegs[:3]), *others.items()]):
        key = f"{number:09d}"
        members += [(f"{key}.{suffix}", data), (f"{key}.json", b'{"caption": "a boat"}'), (f"{key}.txt", b"a boat")]
    tar_of(tmp_path / "00000.tar", [*members, ("000000009.json", b"{}"), ("000000009.txt", b"failed")])
    shards = adopted(tmp_path, tmp_path / "00000.tar")
    assert keys_of(shards) == [f"{number:09d}" for number in range(5)]
    assert shards.manifest.classes == ()
    assert rejects_of(tmp_path)["000000009"].startswith("0 images")


def test_our_own_tars_get_the_index_that_they_had(photo_shards, tmp_path):
    shards = adopted(tmp_path / "out", *sorted(photo_shards.glob("*.tar")))
    for number in range(3):
        ours = open_shards(str(photo_shards)).index(number)
        assert shards.index(number).path.read_bytes() == ours.path.read_bytes()


def test_pairs_in_tars_are_adopted_with_their_scale(tmp_path, make_photo, image_bytes):
    (tmp_path / "HR").mkdir()
    (tmp_path / "LR").mkdir()
    for number in range(3):
        (tmp_path / "HR" / f"{number}.png").write_bytes(image_bytes(make_photo(number, 32, 48)))
        (tmp_path / "LR" / f"{number}.png").write_bytes(image_bytes(make_photo(number, 16, 24)))
    own = built("pairs", tmp_path, tmp_path / "own", scale="2")
    shards = adopted(tmp_path / "out", tmp_path / "own" / "own-000000.tar")
    assert shards.manifest.scale == 2
    assert shards.index(0).path.read_bytes() == own.index(0).path.read_bytes()
    assert run(show, tmp_path / "own", f"--picture={tmp_path}/sheet.png", "--num=1") == 0
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    key = own.index(0)["key"][0].decode()
    lr = np.asarray(Image.open(tmp_path / "LR" / f"{key}.png"))
    assert np.array_equal(sheet[4:36, 52:100], lr.repeat(2, 0).repeat(2, 1))  # beside its HR, enlarged


def test_images_that_training_cannot_read_are_left_out_and_listed(tmp_path, jpegs, image_bytes, make_photo):
    palette = io.BytesIO()
    Image.fromarray(make_photo(1, 32, 32)).convert("P").save(palette, "PNG")
    tar_of(tmp_path / "a.tar", [
        ("good.jpg", jpegs[0]), ("good.cls", b"1"), ("palette.png", palette.getvalue()), ("cut.jpg", jpegs[1][:-9]),
        ("empty.jpg", b""), ("class.jpg", jpegs[2]), ("class.cls", b"cat"), ("two.jpg", jpegs[3]), ("two.png", jpegs[3]),
        ("good.jpg", jpegs[4]), ("noext", b""), ("__meta__.jpg", jpegs[5]), (".hidden", b""),
    ])  # fmt: skip
    shards = adopted(tmp_path, tmp_path / "a.tar")
    assert keys_of(shards) == ["good"]
    assert image_of(shards, 0, 0) == jpegs[0]
    reasons = rejects_of(tmp_path)
    assert set(reasons) == {"palette", "cut", "empty", "class", "two", "good"}
    assert reasons["good"] == "the key occurs twice in this tar; the members of a sample must follow each other"
    assert reasons["palette"].startswith("colour mode P: training cannot read it")


def test_classes_are_read_wherever_they_lie_in_a_sample_and_their_absence_is_counted(tmp_path, jpegs, capsys):
    tar_of(tmp_path / "a.tar", [
        ("a.cls", b"3"), ("a.jpg", jpegs[0]), ("b.jpg", jpegs[1]), ("b.json", b"{}"), ("b.cls", b"1\n"),
        ("c.txt", b"boat"), ("c.cls", b" 2"), ("c.JPG", jpegs[2]), ("d.jpg", jpegs[3]), ("e.json", b"{}"), ("e.jpg", jpegs[4]),
    ])  # fmt: skip
    shards = adopted(tmp_path / "out", tmp_path / "a.tar")
    assert dict(zip(keys_of(shards), shards.index(0)["class"].tolist(), strict=True)) == {
        "a": 3,
        "b": 1,
        "c": 2,
        "d": -1,
        "e": -1,
    }
    assert "2 of the 5 samples have no class\n" in capsys.readouterr().out
    tar_of(tmp_path / "b.tar", [("d.jpg", jpegs[3]), ("e.jpg", jpegs[4])])
    adopted(tmp_path / "none", tmp_path / "b.tar")
    assert "have no class" not in capsys.readouterr().out  # where none has one, none is missed


@pytest.mark.parametrize("number", ["10000000", "999999999", "9" * 5000])
def test_a_number_that_can_be_no_class_is_refused_by_name(tmp_path, jpegs, number):
    tar_of(tmp_path / "a.tar", [("a.jpg", jpegs[0]), ("a.cls", number.encode())])
    with pytest.raises(UserError, match=r"'a': the class \d{8,20} is beyond 9999999, the highest"):
        adopted(tmp_path / "out", tmp_path / "a.tar")
    assert class_number(b"9999999") == 9_999_999


def test_names_of_classes_and_the_place_of_the_tars_can_be_given(tmp_path, jpegs):
    tar_of(tmp_path / "tars" / "a.tar", [("a.jpg", jpegs[0]), ("a.cls", b"1")])
    (tmp_path / "names.txt").write_text("chow\ntench\ncrane\n")
    shards = adopted(tmp_path / "o", tmp_path / "tars/a.tar", classes=tmp_path / "names.txt", tars="https://example.org/a")
    assert shards.manifest.classes == ("chow", "tench", "crane")
    assert shards.manifest.tars == "https://example.org/a"
    with pytest.raises(ShardError, match=r"are at 'https://example\.org/a', not on this machine"):
        shards.paths()
    (tmp_path / "names.txt").write_text("chow\n")
    with pytest.raises(UserError, match=r"^classes: 1 names, but the tars have classes up to number 1"):
        adopted(tmp_path / "p", tmp_path / "tars/a.tar", classes=tmp_path / "names.txt")


def test_the_place_of_tars_is_relative_to_the_manifest_or_absolute(tmp_path, jpegs, monkeypatch):
    tar_of(tmp_path / "x" / "tars" / "a.tar", [("a.jpg", jpegs[0])])
    monkeypatch.chdir(tmp_path)
    shards = adopted(Path("x/out"), "x/tars/a.tar")
    assert shards.manifest.tars == "../tars"
    shutil.move(tmp_path / "x", tmp_path / "y")
    moved = open_shards(str(tmp_path / "y" / "out"))
    moved.check_sizes()
    assert moved.paths() == [tmp_path / "y" / "out" / "../tars/a.tar"]
    assert moved.manifest.digest == shards.manifest.digest


@pytest.mark.parametrize("place", ["pipe:cat x", "ftp://a/b", "file:///a", "gs://x"])
def test_a_manifest_cannot_name_a_program_to_run(photo_shards, tmp_path, place):
    tree = json.loads((photo_shards / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**tree, "tars": place}))
    with pytest.raises(ShardError, match="neither a folder nor begins with"):
        read_manifest(tmp_path)
    with pytest.raises(UserError, match=r"^tars: .*neither a folder nor begins with"):
        adopted(tmp_path / "out", photo_shards / "photos-000000.tar", tars=place)


# ------------------------------------------------------------------------------------------------------------ refusals


def test_compressed_missing_and_piped_tars_are_refused_in_one_line(tmp_path, jpegs, capsys):
    tar_of(tmp_path / "a.tar", [("a.jpg", jpegs[0])])
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "gz.tar").write_bytes(gzip.compress(whole))
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(whole))
    (tmp_path / "bz.tar").write_bytes(bz2.compress(whole))
    os.mkfifo(tmp_path / "pipe.tar")
    for name, expected in {
        "gz.tar": "is compressed (gzip)", "b.tar.gz": "is compressed (gzip)", "bz.tar": "is compressed (bzip2)",
        "pipe.tar": "is not a regular file", "none.tar": "cannot be read: No such file",
    }.items():  # fmt: skip
        assert run(index, tmp_path / "out", tmp_path / name) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: TARS: ")
        assert expected in message
        assert message.count("\n") == 1
    for words, expected in (
        ([tmp_path / "out", "https://example.org/a.tar"], "is not on this machine"),
        ([tmp_path / "out", "pipe:cat a.tar"], "is not on this machine"),
        ([tmp_path / "out"], "TARS is missing"),
        ([tmp_path / "out", tmp_path / "a{1.tar"], "braces"),
        ([tmp_path / "out", tmp_path / "*.tar"], "a * stands for nothing; patterns are such as 'name-{000000..000127}.tar'"),
        ([tmp_path / "out", tmp_path / "a.tar", tmp_path / "a.tar"], "named twice"),
        ([tmp_path / "out", tmp_path / "a.tar", tmp_path / "x" / "a.tar"], "2 folders"),
    ):
        assert run(index, *words) == 2
        assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_tars_without_a_readable_image_are_refused_and_a_second_manifest_too(tmp_path, jpegs):
    tar_of(tmp_path / "a.tar", [("a.txt", b"x")])
    with pytest.raises(UserError, match=r"^TARS: training can read none of the samples: 'a': 0 images"):
        adopted(tmp_path / "out", tmp_path / "a.tar")
    tar_of(tmp_path / "a.tar", [("a.jpg", jpegs[0])])
    adopted(tmp_path / "out", tmp_path / "a.tar")
    with pytest.raises(UserError, match=r"^OUT: .*already holds shards"):
        adopted(tmp_path / "out", tmp_path / "a.tar")


def test_a_stored_lr_that_is_no_png_is_not_passed_over(tmp_path, jpegs):
    tar_of(tmp_path / "a.tar", [("a.jpg", jpegs[0]), ("a.lr.jpg", jpegs[1]), ("b.jpg", jpegs[2])])
    shards = adopted(tmp_path / "out", tmp_path / "a.tar")
    assert keys_of(shards) == ["b"]
    assert rejects_of(tmp_path / "out") == {"a": "its LR is a .lr.jpg; stored LR is PNG"}


def test_a_refusal_leaves_no_unfinished_index_and_changes_no_file(tmp_path, jpegs, photo_shards):
    tar_of(tmp_path / "a.tar", [("a.jpg", jpegs[0]), ("a.cls", b"1")])
    tar_of(tmp_path / "b.tar", [("b.jpg", jpegs[1])])
    (tmp_path / "b.tar").write_bytes((tmp_path / "b.tar").read_bytes()[:700])
    shutil.copy(photo_shards / "photos-000000.idx", tmp_path / "a.idx")  # of an earlier adoption
    (tmp_path / "rejects.jsonl").write_text("{}\n")
    before = bytes_of(tmp_path)
    for out in (tmp_path, tmp_path / "made" / "for it"):
        with pytest.raises(UserError, match="is cut short"):
            adopted(out, tmp_path / "a.tar", tmp_path / "b.tar")
        with pytest.raises(UserError, match="1 names"):
            adopted(out, tmp_path / "a.tar", classes=tmp_path / "rejects.jsonl")
        assert bytes_of(tmp_path) == before
    adopted(tmp_path, tmp_path / "a.tar")
    assert {*before, "manifest.json", "duplicates.jsonl"} == set(bytes_of(tmp_path))
    assert keys_of(open_shards(str(tmp_path))) == ["a"]


def test_an_index_of_another_program_stays(tmp_path, jpegs):
    tar_of(tmp_path / "a.tar", [("a.jpg", jpegs[0])])
    (tmp_path / "a.idx").write_text("v1.2 1\njpg 512 812 a.jpg\n")  # as DALI's wds2idx writes it
    before = bytes_of(tmp_path)
    with pytest.raises(UserError, match=r"^OUT: '.*a\.idx' exists and is not an index of sr_dist"):
        adopted(tmp_path, tmp_path / "a.tar")
    assert bytes_of(tmp_path) == before


# ------------------------------------------------------------------------------------------------------------- damaged


@pytest.fixture(scope="module")
def small_tar(tmp_path_factory, jpegs):
    path = tmp_path_factory.mktemp("fuzz") / "a.tar"
    tar_of(path, [(f"{i}.{kind}", data) for i in range(3) for kind, data in (("jpg", jpegs[i]), ("cls", b"%d" % i))])
    with tarfile.open(path) as tar:
        headers = [member.offset for member in tar]
    return path.read_bytes(), headers


@given(st.data())
@settings(max_examples=150)
def test_a_damaged_tar_is_refused_or_gives_right_images(tmp_path, small_tar, jpegs, data):
    """Bytes of headers changed at will (also with a right checksum), or the file cut: never another image than was packed."""
    raw, headers = bytearray(small_tar[0]), small_tar[1]
    for _ in range(data.draw(st.integers(1, 4))):
        header = data.draw(st.sampled_from(headers))
        place = header + data.draw(st.one_of(st.integers(124, 135), st.integers(0, 511)))  # the size's digits, or any
        raw[place] = data.draw(st.one_of(st.sampled_from(b"07 \0\x80\xff15Lxg"), st.integers(0, 255)))
        if data.draw(st.booleans()):
            raw[header + 148 : header + 156] = b" " * 8
            raw[header + 148 : header + 156] = b"%06o\0 " % sum(raw[header : header + 512])
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw)))]
    folder = tmp_path / "fuzz"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "a.tar").write_bytes(raw)
    try:
        shards = adopted(folder / "out", folder / "a.tar")
    except UserError as problem:
        result = str(problem)
    else:
        result = "adopted"
        # A larger size under a right checksum adds bytes behind the image, which JPEG allows; its image stays what it was.
        assert all(image_of(shards, 0, row).startswith(tuple(jpegs[:3])) for row in range(len(shards.index(0))))
    assert len(result.splitlines()) == 1


def test_a_damaged_header_in_the_middle_is_not_taken_for_the_end(tmp_path, small_tar):
    """tarfile would return the members before it without an error."""
    raw = bytearray(small_tar[0])
    raw[small_tar[1][2] + 5] ^= 1
    (tmp_path / "a.tar").write_bytes(raw)
    with pytest.raises(ShardError, match=f"the header at byte {small_tar[1][2]} is damaged"):
        adopted(tmp_path / "out", tmp_path / "a.tar")
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("padding", [0, 3 << 20])
def test_two_tars_in_one_file_are_refused_not_read_by_half(tmp_path, small_tar, padding):
    first = small_tar[0] + bytes(padding)
    (tmp_path / "a.tar").write_bytes(first + small_tar[0])
    with pytest.raises(ShardError, match=f"more follows at byte {len(first)}: a second tar behind the first"):
        adopted(tmp_path / "out", tmp_path / "a.tar")
    (tmp_path / "a.tar").write_bytes(first)
    assert len(keys_of(adopted(tmp_path / "out", tmp_path / "a.tar"))) == 3


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@given(st.data())
@settings(max_examples=100)
def test_damaged_manifests_and_indexes_end_in_one_line_in_every_command(tmp_path, photo_shards, capsys, data):
    """Never a traceback. If a command reports no damage, the samples are those that were packed."""
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(photo_shards, copy)
    name = data.draw(st.sampled_from(["manifest.json", "photos-000001.idx", "photos-000001.tar", "rejects.jsonl", "tree"]))
    if name == "tree":
        tree = json.loads((copy / "manifest.json").read_text())
        where = data.draw(st.sampled_from([tree, tree["shards"][0], tree["order"]]))
        where[data.draw(st.sampled_from([*where, "more"]))] = data.draw(anything)
        (copy / "manifest.json").write_text(json.dumps(tree))
    else:
        raw = bytearray((copy / name).read_bytes()) or bytearray(b"\n")
        for _ in range(data.draw(st.integers(1, 3))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        (copy / name).write_bytes(raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw)
    capsys.readouterr()
    codes = [run(verify, copy, "--deep"), run(show, copy, f"--picture={tmp_path}/sheet.png", "--num=4")]
    assert set(codes) <= {0, 1, 2}
    assert all(line.startswith("error: ") for line in capsys.readouterr().err.splitlines())
    if codes[0] == 0:
        assert sorted(keys_of(open_shards(str(copy)))) == sorted(keys_of(open_shards(str(photo_shards))))
