from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from shards import show, verify
from shards.build import build
from sr_dist.data.format import Index, open_shards


@pytest.fixture
def copy(photo_shards, tmp_path):
    return shutil.copytree(photo_shards, tmp_path / "copy")


@pytest.fixture
def verified(capsys):
    """Runs the command: (exit code, lines)."""

    def run(folder, *options: str) -> tuple[int, list[str]]:
        capsys.readouterr()
        try:
            code = verify.main([str(folder), *options])
        except SystemExit as end:
            code = int(end.code or 0)
        return code, capsys.readouterr().out.splitlines()

    return run


def flip(path, place: int, bit: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= bit
    path.write_bytes(data)


def test_whole_shards_are_whole(verified, photo_shards):
    for options in ((), ("--deep",)):
        assert verified(photo_shards, *options) == (0, ["3 of 3 shards are whole, with 24 of 24 samples"])


@pytest.mark.parametrize("place", [0, 130, 700, -700, -1])
def test_a_flipped_bit_anywhere_in_a_shard_is_reported(verified, copy, place):
    flip(copy / "photos-000001.tar", place)
    code, lines = verified(copy)
    assert code == 1
    assert lines[0] == "BAD photos-000001.tar: its sha256 is not the manifest's"
    index = open_shards(str(copy)).index(1)
    at = place % (copy / "photos-000001.tar").stat().st_size
    begins, ends = index["hr_offset"], index["hr_offset"] + index["hr_bytes"]
    hit = [key.decode() for key, begin, end in zip(index["key"], begins, ends, strict=True) if begin <= at < end]
    assert lines[1:-1] == [f"BAD photos-000001.tar: the hr image of '{key}' does not match its checksum" for key in hit]
    bad = "1 bad sample" if hit else "0 bad samples"
    assert lines[-1] == f"2 of 3 shards are whole, with 16 of 24 samples; the others have {bad}"


def test_of_many_damaged_samples_the_first_are_named_and_the_others_counted(verified, copy, monkeypatch):
    monkeypatch.setattr(verify, "MOST_LINES", 3)
    path = copy / "photos-000001.tar"
    path.write_bytes(bytes(path.stat().st_size))
    code, lines = verified(copy)
    assert code == 1
    assert len(lines) == 5  # the checksum of the whole, two of eight samples, the rest, the sum
    assert lines[3] == "BAD photos-000001.tar: and 6 more"


def test_a_shard_that_was_cut_short_or_is_gone_is_reported(verified, copy):
    path = copy / "photos-000000.tar"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size - 512])
    (copy / "photos-000002.tar").unlink()
    code, lines = verified(copy)
    assert code == 1
    assert lines[0] == f"BAD photos-000000.tar: {size - 512} bytes where the manifest says {size}"
    assert lines[1] == "BAD photos-000002.tar: it cannot be read: No such file or directory"
    assert lines[2].startswith("1 of 3 shards are whole")


@pytest.mark.parametrize("place", [3, 9, 13, 17, 21, 25, 40, -1])
def test_a_flipped_bit_anywhere_in_an_index_is_reported(verified, copy, place):
    flip(copy / "photos-000001.idx", place)
    code, lines = verified(copy)
    assert code == 1
    assert lines[0].startswith("BAD photos-000001.tar: ")
    assert "photos-000001.idx" in lines[0]
    assert len(lines) == 2


def test_a_missing_index_is_reported(verified, copy):
    (copy / "photos-000002.idx").unlink()
    code, lines = verified(copy)
    assert code == 1
    assert "photos-000002.idx' cannot be read" in lines[0]


def test_the_index_of_another_shard_is_reported(verified, copy):
    shutil.copy(copy / "photos-000000.idx", copy / "photos-000001.idx")
    code, lines = verified(copy)
    assert code == 1
    assert lines[0].startswith("BAD photos-000001.tar: ") and len(lines) > 1


def test_a_manifest_that_counts_wrongly_is_reported(verified, copy):
    tree = json.loads((copy / "manifest.json").read_text())
    tree["shards"][0]["samples"], tree["shards"][1]["samples"] = 9, 7
    (copy / "manifest.json").write_text(json.dumps(tree))
    code, lines = verified(copy)
    assert code == 1
    assert [line.split(":")[0] for line in lines[:2]] == ["BAD photos-000000.tar", "BAD photos-000001.tar"]


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ({"min_side": 33}, "min_side is 33, but the smallest side in the indexes is 32"),
        ({"min_side": 16}, "min_side is 16, but the smallest side in the indexes is 32"),
        ({"scale": 2}, "scale is 2, but LR images in the indexes are of [0] (0 is none)"),
        ({"classes": ["boats", "cats"]}, "it names 2 classes, but the indexes have the class 2"),
    ],
)
def test_a_manifest_that_contradicts_its_indexes_is_reported(verified, copy, lie, message):
    tree = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**tree, **lie}))
    counted = "3 of 3 shards are whole, with 24 of 24 samples"
    assert verified(copy) == (1, [f"BAD manifest.json: {message}", counted])


def test_the_scale_of_stored_lr_is_compared_with_the_manifest(verified, tmp_path, make_photo, image_bytes):
    (tmp_path / "HR").mkdir()
    (tmp_path / "LR").mkdir()
    (tmp_path / "HR" / "a.png").write_bytes(image_bytes(make_photo(1, 32, 48)))
    (tmp_path / "LR" / "a.png").write_bytes(image_bytes(make_photo(1, 16, 24)))
    build("pairs", str(tmp_path), tmp_path / "out", {"scale": "2"})
    assert verified(tmp_path / "out")[0] == 0
    tree = json.loads((tmp_path / "out" / "manifest.json").read_text())
    (tmp_path / "out" / "manifest.json").write_text(json.dumps({**tree, "scale": 4}))
    assert (
        verified(tmp_path / "out")[1][0] == "BAD manifest.json: scale is 4, but LR images in the indexes are of [2] (0 is none)"
    )


def test_deep_finds_an_image_that_was_broken_before_it_was_packed(verified, tmp_path, make_photo, image_bytes):
    (tmp_path / "images").mkdir()
    broken = bytearray(image_bytes(make_photo(1, 32, 32)))
    broken[60:200] = bytes(140)
    (tmp_path / "images" / "broken.png").write_bytes(broken)
    (tmp_path / "images" / "good.png").write_bytes(image_bytes(make_photo(2, 32, 32)))
    build("folder", str(tmp_path / "images"), tmp_path / "out", {})
    assert verified(tmp_path / "out")[0] == 0
    code, lines = verified(tmp_path / "out", "--deep")
    assert code == 1
    assert lines[0].startswith("BAD out-000000.tar: the hr image of 'broken' cannot be decoded")


def test_some_shards_can_be_verified_alone(verified, copy):
    flip(copy / "photos-000001.tar", 700)
    whole = (0, ["2 of 2 shards are whole, with 16 of 16 samples"])
    assert verified(f"{copy}/photos-{{000000,000002}}.tar") == whole
    tree = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**tree, "min_side": 16}))
    assert verified(f"{copy}/photos-{{000000,000002}}.tar") == whole  # the smallest may be in the other one


# ----------------------------------------------------------------------------------------------------------------- show


def test_show_makes_a_sheet_of_images_and_a_summary(copy, capsys):
    assert show.main([str(copy), "--num=9"]) == 0
    out = capsys.readouterr().out
    assert "24 samples in 3 shards" in out
    assert "width 36 to 48, height 32 to 48, modes: RGB 24" in out
    assert [line.split() for line in out.splitlines() if line.startswith("  ")] == [["8", "boats"], ["8", "cats"], ["8", "dunes"]]
    sheet = np.array(Image.open(copy / "contact_sheet.png").convert("RGB")).astype(int)
    assert sheet.shape == (3 * (48 + 20) + 4, 3 * 52 + 4, 3)
    for row in range(3):
        for column in range(3):
            cell = sheet[4 + row * 68 : 4 + row * 68 + 32, 4 + column * 52 : 4 + column * 52 + 36]
            assert cell.std() > 10  # no cell is blank


def test_the_images_of_the_sheet_are_the_samples(copy, tmp_path, photos):
    assert show.main([str(copy), "--num=1", f"--picture={tmp_path}/sheet.png"]) == 0
    sheet = np.array(Image.open(tmp_path / "sheet.png"))
    key = Index(copy / "photos-000000.idx")["key"][0].decode()
    image = np.array(Image.open(next(photos.glob(f"{key}.*"))).convert("RGB"))
    height, width = image.shape[:2]
    assert np.array_equal(sheet[4 : 4 + height, 4 : 4 + width], image)
    assert not (copy / "contact_sheet.png").exists()


def test_a_picture_in_a_folder_that_does_not_exist_is_refused(copy, tmp_path, capsys):
    assert show.main([str(copy), f"--picture={tmp_path}/new/sheet.png"]) == 2
    assert capsys.readouterr().err.startswith(f"error: picture: no folder '{tmp_path}/new'")
    assert not (tmp_path / "new").exists()


def test_an_image_that_cannot_be_shown_leaves_a_gap_and_is_named(copy, capsys):
    assert show.main([str(copy), "--num=24"]) == 0
    before = np.array(Image.open(copy / "contact_sheet.png"))
    capsys.readouterr()
    index = Index(copy / "photos-000001.idx")
    key = index["key"][3].decode()
    flip(copy / "photos-000001.tar", int(index["hr_offset"][3]) + 50)
    assert show.main([str(copy), "--num=24"]) == 1
    bad = [line for line in capsys.readouterr().out.splitlines() if line.startswith("BAD")]
    reason = "cannot be shown: its bytes do not match their checksum"
    assert bad == [f"BAD '{copy}/photos-000001.tar': the hr image of '{key}' {reason}"]
    changed = (np.array(Image.open(copy / "contact_sheet.png")) != before).any(2)
    top, left = 4 + 11 // 5 * 68, 4 + 11 % 5 * 52  # of sample 11, the fourth of the second shard
    assert changed[top : top + 48, left : left + 48].any()
    changed[top : top + 48, left : left + 48] = False  # its image
    changed[top + 48 : top + 68, left:] = False  # and the line below
    assert not changed.any()


def test_a_larger_num_than_samples_shows_them_all(copy, tmp_path):
    assert show.main([str(copy), "--num=1000", f"--picture={tmp_path}/sheet.png"]) == 0
    sheet = np.array(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape[:2] == (5 * 68 + 4, 5 * 52 + 4)  # 24 in five columns


def test_shards_without_classes_are_shown_with_their_keys(photos, tmp_path, capsys):
    build("folder", str(photos), tmp_path / "out", {"per_shard": "10"})
    assert show.main([str(tmp_path / "out")]) == 0
    assert "boats" not in capsys.readouterr().out
    assert open_shards(str(tmp_path / "out")).manifest.classes == ()
    assert (tmp_path / "out" / "contact_sheet.png").stat().st_size > 5000


def test_showing_leaves_the_shards_verifiable(copy, verified):
    assert show.main([str(copy)]) == 0
    assert verified(copy, "--deep")[0] == 0
