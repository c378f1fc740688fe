"""Restart markers in original JPEGs: the pixels and the metadata stay, and the reader cuts rows."""

from __future__ import annotations

import io
import json
import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_shards import built, bytes_of, contents, rejects_of
from photographs import made_photo
from PIL import Image

from shards import build, index, restarts, verify
from shards.image_header import inspect_image
from shards.restarts import DIFFERS, MARKED, MARKED_BEFORE, NOT_CUT, REFUSED, SEVERAL, marked
from sr_dist.core.errors import UserError
from sr_dist.data.jpeg_rows import band
from sr_dist.data.reader import ShardReader, Square, decode

needs_jpegtran = pytest.mark.skipif(not shutil.which("jpegtran"), reason="no jpegtran (Debian: libjpeg-turbo-progs)")


def jpeg(height: int, width: int, mode: str = "RGB", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(made_photo(height + width, height, width)).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def with_markers(data: bytes) -> tuple[bytes, str]:
    return marked(inspect_image(data))


# --------------------------------------------------------------------------------------------------------- one JPEG


@needs_jpegtran
@given(
    height=st.integers(1, 150), width=st.integers(1, 90), sampling=st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
    mode=st.sampled_from(["RGB", "L"]), progressive=st.booleans(), optimize=st.booleans(), quality=st.sampled_from([30, 75, 95]),
    data=st.data(),
)  # fmt: skip
@settings(max_examples=60)
def test_pixels_stay_and_every_crop_is_cut(height, width, sampling, mode, progressive, optimize, quality, data):
    """Also by torchvision's decoder, which training uses, and progressive files become ones that can be cut."""
    original = jpeg(height, width, mode, subsampling=sampling, progressive=progressive, optimize=optimize, quality=quality)
    result, outcome = with_markers(original)
    assert outcome == MARKED
    whole = decode(original, 3)
    assert np.array_equal(decode(result, 3), whole)
    top = data.draw(st.integers(0, height - 1))
    bottom = data.draw(st.integers(top + 1, height))
    part, first = band(bytearray(result), (height, width), top, bottom)
    assert np.array_equal(decode(part, 3)[:, top - first : bottom - first], whole[:, top:bottom])
    assert decode(part, 3).shape[1] <= bottom - top + 2 + 2 * 15


@needs_jpegtran
@pytest.mark.parametrize("sampling", ["1x2", "4x1", "2x2,1x2,1x2"])
def test_unusual_samplings_stay_right(sampling, tmp_path):
    """4:4:0, 4:1:1, and 4:2:0 whose chroma has the full height, by libjpeg's own encoder."""
    if not shutil.which("cjpeg"):
        pytest.skip("no cjpeg (Debian: libjpeg-turbo-progs)")
    Image.fromarray(made_photo(5, 83, 61)).save(tmp_path / "a.ppm")
    encoder = ["cjpeg", "-sample", sampling, str(tmp_path / "a.ppm")]
    original = subprocess.run(encoder, check=True, capture_output=True).stdout
    result, outcome = with_markers(original)
    assert outcome == MARKED
    whole = decode(original, 3)
    for top in range(0, 82, 3):
        part, first = band(bytearray(result), (83, 61), top, top + 2)
        assert len(part) < len(result)
        assert np.array_equal(decode(part, 3)[:, top - first : top - first + 2], whole[:, top : top + 2])


@needs_jpegtran
def test_metadata_stay(make_photo):
    exif = Image.Exif()
    exif[0x010E] = "a boat"
    original = jpeg(64, 48, exif=exif, icc_profile=b"a profile" * 9000, comment=b"by hand", dpi=(300, 300))
    result, outcome = with_markers(original)
    assert outcome == MARKED
    before, after = Image.open(io.BytesIO(original)), Image.open(io.BytesIO(result))
    for name in ("exif", "icc_profile", "comment", "dpi"):
        assert after.info[name] == before.info[name], name
    assert after.getexif()[0x010E] == "a boat"


@needs_jpegtran
def test_jpegs_that_stay_say_why():
    good = jpeg(64, 48)
    has = jpeg(64, 48, restart_marker_rows=1)
    assert with_markers(has) == (has, MARKED_BEFORE)
    second, file = Image.fromarray(made_photo(2, 64, 48)), io.BytesIO()
    Image.fromarray(made_photo(1, 64, 48)).save(file, "MPO", save_all=True, append_images=[second])
    assert with_markers(file.getvalue()) == (file.getvalue(), SEVERAL)
    scan = good.index(b"\xff\xda")
    cut = good[: scan + 200] + b"\xff\xd9"  # decoders warn and paint the rest grey
    assert with_markers(cut) == (cut, REFUSED)


@needs_jpegtran
@pytest.mark.parametrize("restart_marker_rows", [0, 1])
def test_a_jpeg_that_cannot_be_decoded_is_rejected_with_restarts_and_found_by_verify(tmp_path, capsys, restart_marker_rows):
    """Its header and its end are right."""
    (tmp_path / "images").mkdir()
    bad = bytearray(jpeg(64, 48, restart_marker_rows=restart_marker_rows))
    table = bad.index(b"\xff\xc4")
    bad[table + 5 : table + 21] = b"\xff" * 16  # more codes than fit
    for name, data in (("bad", bytes(bad)), ("good", jpeg(64, 48))):
        (tmp_path / "images" / f"{name}.jpg").write_bytes(data)
    marked_shards = built("folder", tmp_path / "images", tmp_path / "marked", restarts="true")
    assert list(contents(marked_shards)) == ["good.jpg"]
    assert rejects_of(tmp_path / "marked") == {"bad": "cannot be decoded"}
    assert sorted(contents(built("folder", tmp_path / "images", tmp_path / "plain"))) == ["bad.jpg", "good.jpg"]
    capsys.readouterr()
    assert verify.main([str(tmp_path / "plain"), "--deep"]) == 1
    assert "BAD plain-000000.tar: the hr image of 'bad' cannot be decoded" in capsys.readouterr().out


@needs_jpegtran
@pytest.mark.parametrize(
    ("other", "outcome"), [(jpeg(64, 48, quality=20, restart_marker_rows=1), DIFFERS), (jpeg(64, 48), NOT_CUT)]
)
def test_a_result_with_other_pixels_or_without_markers_is_not_taken(monkeypatch, other, outcome):
    monkeypatch.setattr(restarts, "transcoded", lambda data: other)
    original = jpeg(64, 48)
    assert with_markers(original) == (original, outcome)


# ----------------------------------------------------------------------------------------------------------- a build


@pytest.fixture
def folder(tmp_path):
    """JPEGs with and without markers, one that stays, and a PNG."""
    root = tmp_path / "images"
    root.mkdir()
    for number, sampling in enumerate(["4:4:4", "4:2:2", "4:2:0", "4:2:0"]):
        (root / f"{number}.jpg").write_bytes(jpeg(70 + number, 50 + number, subsampling=sampling, progressive=number == 3))
    (root / "grey.jpg").write_bytes(jpeg(61, 47, "L"))
    (root / "marked.jpg").write_bytes(jpeg(64, 48, restart_marker_rows=1))
    damaged = jpeg(64, 48)
    (root / "damaged.jpg").write_bytes(damaged[: damaged.index(b"\xff\xda") + 200] + b"\xff\xd9")
    Image.fromarray(made_photo(1, 64, 48)).save(root / "a.png")
    return root


@needs_jpegtran
def test_a_build_counts_and_the_reader_gives_the_same_crops(folder, tmp_path, capsys):
    plain = built("folder", folder, tmp_path / "plain")
    capsys.readouterr()
    shards = built("folder", folder, tmp_path / "out", restarts="true")
    assert f"restart markers were put into 5 JPEGs; as they were: 1 {MARKED_BEFORE}, 1 {REFUSED}\n" in capsys.readouterr().out
    assert shards.manifest.source["restarts"] == {MARKED: 5, MARKED_BEFORE: 1, REFUSED: 1}
    assert "jpegtran" in shards.manifest.tool
    before, after = contents(plain), contents(shards)
    assert {name for name in before if before[name] != after[name]} == {"0.jpg", "1.jpg", "2.jpg", "3.jpg", "grey.jpg"}
    first, second = ShardReader(plain), ShardReader(shards)
    for row in range(shards.manifest.samples):
        assert first.key(0, row) == second.key(0, row)
        for square in (Square(0, 0, 16), Square(21, 5, 24), Square(40, 20, 21)):
            expected = first.square(0, row, "hr", 3, square)
            assert np.array_equal(second.square(0, row, "hr", 3, square), expected)


@needs_jpegtran
def test_workers_tasks_and_a_build_begun_before_make_the_same_bytes(folder, tmp_path):
    options = {"restarts": "true", "per_shard": "3"}
    expected = tmp_path / "one" / "out"
    built("folder", folder, expected, **options)
    out = tmp_path / "two" / "out"
    build.build("folder", str(folder), out, {**options, "task": "1/3"})
    with pytest.raises(UserError, match="restarts True, but it is None now"):
        build.build("folder", str(folder), out, {"per_shard": "3"})
    built("folder", folder, out, **options, workers="2")
    assert bytes_of(out) == bytes_of(expected)


def test_a_build_without_the_option_continues_with_plan_files_that_do_not_know_it(folder, tmp_path):
    build.build("folder", str(folder), tmp_path / "out", {"per_shard": "3", "task": "0/3"})
    assert "restarts" not in json.loads((tmp_path / "out" / ".build.json").read_text())["options"]


@needs_jpegtran
def test_a_killed_jpegtran_ends_the_build_and_says_nothing_about_the_image(folder, tmp_path, monkeypatch):
    killer = tmp_path / "killed"
    killer.write_text("#!/bin/sh\nkill -9 $$\n")
    killer.chmod(0o755)
    monkeypatch.setattr(build, "jpegtran_version", lambda: "1")
    monkeypatch.setattr(restarts, "COMMAND", (str(killer),))
    with pytest.raises(SystemExit, match="jpegtran was killed by signal 9"):
        build.build("folder", str(folder), tmp_path / "out", {"restarts": "true"})
    assert not list((tmp_path / "out").glob("*.tar"))


# ---------------------------------------------------------------------------------------------------------- refusals


def test_without_jpegtran_nothing_is_written_and_the_packages_are_named(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build.main(["folder", str(folder), str(tmp_path / "out"), "--restarts"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: restarts: needs the program jpegtran")
    assert "libjpeg-turbo-progs" in message
    assert message.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_jpegtran_that_writes_no_markers_is_refused(folder, tmp_path, monkeypatch, capsys):
    """As that of mozjpeg, which writes progressive files."""
    (tmp_path / "jpegtran").write_text("#!/bin/sh\n[ \"$1\" = -version ] && echo 'mozjpeg 4' >&2 || exec /bin/cat\n")
    (tmp_path / "jpegtran").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build.main(["folder", str(folder), str(tmp_path / "out"), "--restarts"]) == 2
    assert capsys.readouterr().err.startswith(f"error: restarts: this jpegtran (mozjpeg 4) writes no usable markers ({NOT_CUT})")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "key"), [("--format=jpg", "restarts"), ("--tile=32", "restarts"), ("--resize=32", "restarts"), ("--keep", "keep")]
)
def test_options_that_write_images_anew_are_refused(folder, tmp_path, capsys, option, key):
    assert build.main(["folder", str(folder), str(tmp_path / "out"), "--restarts", option]) == 2
    assert capsys.readouterr().err.startswith(f"error: {key}: ")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------------------- adoption


@needs_jpegtran
def test_adoption_says_how_many_jpegs_would_gain(folder, tmp_path, capsys):
    """Six of the seven JPEGs have no markers."""
    built("folder", folder, tmp_path / "built")
    capsys.readouterr()
    assert index.main([str(tmp_path / "adopted"), str(tmp_path / "built" / "built-000000.tar")]) == 0
    assert "\n6 JPEGs without restart markers: training decodes them whole; " in capsys.readouterr().out
    shards = built("folder", folder, tmp_path / "marked", restarts="true")
    (tmp_path / "marked" / shards.manifest.shards[0].name).rename(tmp_path / "b.tar")
    assert index.main([str(tmp_path / "again"), str(tmp_path / "b.tar")]) == 0
    assert "\n1 JPEG without restart markers: " in capsys.readouterr().out  # the damaged one
