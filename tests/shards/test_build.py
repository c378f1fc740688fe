from __future__ import annotations

import hashlib
import io
import os
import struct
import tarfile
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_shards import built, bytes_of, keys_of, members, rejects_of
from PIL import Image

from shards import build
from shards.items import LONGEST_KEY, SUFFIXES, Files, clean_key
from shards.sources import sample_photos
from sr_dist.core.errors import UserError
from sr_dist.data.format import MODES, open_shards


@pytest.fixture
def folder(tmp_path):
    """A folder of images to fill."""
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


# ------------------------------------------------------------------------------------------ our tars in other programs


def test_tarfile_reads_every_image_as_it_was(photo_shards, photos):
    files = {path.relative_to(photos).as_posix(): path.read_bytes() for path in photos.rglob("*.*")}
    members: dict[str, bytes] = {}
    for path in sorted(photo_shards.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                members[member.name] = tar.extractfile(member).read()
                assert (member.mtime, member.uid, member.gid, member.mode, member.isreg()) == (0, 0, 0, 0o644, True)
    assert {name: data for name, data in members.items() if not name.endswith(".cls")} == files
    classes = {name.removesuffix(".cls"): data.decode() for name, data in members.items() if name.endswith(".cls")}
    number = {"boats": "0", "cats": "1", "dunes": "2"}
    assert classes == {Path(name).with_suffix("").as_posix(): number[name.split("/")[0]] for name in files}


def test_webdataset_reads_every_sample(photo_shards, photos):
    import webdataset

    pattern = str(photo_shards / "photos-{000000..000002}.tar")
    samples = list(webdataset.WebDataset(pattern, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == keys_of(open_shards(str(photo_shards)))
    for sample in samples:
        (suffix,) = {"jpg", "png"} & set(sample)
        assert sample[suffix] == (photos / f"{sample['__key__']}.{suffix}").read_bytes()
        assert int(sample["cls"]) == ["boats", "cats", "dunes"].index(sample["__key__"].split("/")[0])


def test_the_index_points_at_the_images(photo_shards, photos):
    shards = open_shards(str(photo_shards))
    for number, path in enumerate(shards.paths()):
        data, index = path.read_bytes(), shards.index(number)
        index.check()
        with tarfile.open(path) as tar:
            images = [member for member in tar if not member.name.endswith(".cls")]
        places = {member.name.rsplit(".", 1)[0]: (member.offset_data, member.size) for member in images}
        for row in range(len(index)):
            key, offset, size = index["key"][row].decode(), int(index["hr_offset"][row]), int(index["hr_bytes"][row])
            assert places[key] == (offset, size)
            image = data[offset : offset + size]
            assert image == next(photos.glob(f"{key}.*")).read_bytes()
            assert zlib.crc32(image) == index["hr_crc32"][row]
            assert hashlib.blake2b(image, digest_size=16).digest() == bytes(index["hash"][row])
            with Image.open(io.BytesIO(image)) as opened:
                assert opened.size == (index["width"][row], index["height"][row])
                assert opened.mode == MODES[index["mode"][row]]
            assert index["lr_bytes"][row] == 0


def test_the_manifest_describes_the_shards(photo_shards, photos):
    manifest = open_shards(str(photo_shards)).manifest
    assert (manifest.samples, manifest.min_side, manifest.order) == (24, 32, {"seed": 0})
    assert manifest.classes == ("boats", "cats", "dunes")
    assert [(entry.name, entry.samples) for entry in manifest.shards] == [(f"photos-{n:06d}.tar", 8) for n in range(3)]
    for entry in manifest.shards:
        data = (photo_shards / entry.name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry.bytes, entry.sha256)
        assert len(data) % 512 == 0
    assert manifest.source["name"] == "class_folders"
    assert str(photos) not in (photo_shards / "manifest.json").read_text()  # the same bytes wherever the images lie
    assert (photo_shards / "rejects.jsonl").read_text() == ""


def test_every_shard_holds_several_classes(photo_shards):
    shards = open_shards(str(photo_shards))
    assert all(len(set(shards.index(number)["class"].tolist())) > 1 for number in range(3))


# --------------------------------------------------------------------------------------------------------- same bytes


def test_the_same_input_gives_the_same_bytes(photos, photo_shards, tmp_path):
    built("class_folders", photos, tmp_path / "photos", per_shard="8")
    assert bytes_of(tmp_path / "photos") == bytes_of(photo_shards)
    assert set(bytes_of(photo_shards)) == {f"photos-{n:06d}.{kind}" for n in range(3) for kind in ("tar", "idx")} | {
        "manifest.json", "rejects.jsonl", "duplicates.jsonl",
    }  # fmt: skip


def test_another_seed_gives_another_order_of_the_same_samples(photos, photo_shards, tmp_path):
    other = built("class_folders", photos, tmp_path / "photos", per_shard="8", seed="1")
    first, second = keys_of(open_shards(str(photo_shards))), keys_of(other)
    assert first != second
    assert sorted(first) == sorted(second)
    assert other.manifest.digest != open_shards(str(photo_shards)).manifest.digest


@pytest.mark.parametrize(
    ("per_shard", "sizes"), [("7", [6, 6, 6, 6]), ("24", [24]), ("1000", [24]), ("10", [8, 8, 8]), ("5", [4, 5, 5, 5, 5])]
)
def test_shards_are_even_and_hold_at_most_so_many(photos, tmp_path, per_shard, sizes):
    shards = built("class_folders", photos, tmp_path / "out", per_shard=per_shard)
    assert [entry.samples for entry in shards.manifest.shards] == sizes


def test_shards_can_be_named(photos, tmp_path):
    shards = built("folder", photos, tmp_path / "out", name="train")
    assert [path.name for path in shards.paths()] == ["train-000000.tar"]
    assert shards.manifest.classes == ()
    assert set(shards.index(0)["class"].tolist()) == {-1}


def test_a_reject_makes_its_shard_shorter_and_shifts_no_other(photos, photo_shards, tmp_path):
    copy = tmp_path / "images"
    for path in photos.rglob("*.*"):
        (copy / path.parent.name).mkdir(parents=True, exist_ok=True)
        (copy / path.parent.name / path.name).write_bytes(path.read_bytes())
    key = open_shards(str(photo_shards)).index(1)["key"][3].decode()
    next(copy.glob(f"{key}.*")).write_bytes(b"")
    shards = built("class_folders", copy, tmp_path / "photos", per_shard="8")
    assert [entry.samples for entry in shards.manifest.shards] == [8, 7, 8]
    before, after = bytes_of(photo_shards), bytes_of(tmp_path / "photos")
    assert {name for name in before if before[name] != after[name]} == {
        "photos-000001.tar", "photos-000001.idx", "manifest.json", "rejects.jsonl",
    }  # fmt: skip
    assert key not in keys_of(shards)


# ------------------------------------------------------------------------------------------------------------- rejects


@pytest.fixture
def bad_images(folder, make_photo, image_bytes):
    """Two good images and everything that cannot be a sample."""
    good = make_photo(1, 32, 40)
    jpeg, png, webp = (image_bytes(good, kind) for kind in ("JPEG", "PNG", "WEBP"))
    contents = {
        "good.png": png, "good2.jpg": jpeg, "empty.png": b"", "text.png": b"no image at all", "cut.jpg": jpeg[:-20],
        "cut.webp": webp[: len(webp) // 2], "cut2.png": png[:-20], "header.png": png[:20],
        "cut.bmp": image_bytes(good, "BMP")[:-90], "small.png": image_bytes(make_photo(2, 15, 40)),
    }  # fmt: skip
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    frames = [Image.fromarray(make_photo(number, 32, 32)) for number in range(3)]
    for name in ("moving.gif", "moving.webp", "moving.png", "pages.tif"):
        frames[0].save(folder / name, save_all=True, append_images=frames[1:])
    Image.fromarray(good[..., 0].astype(np.float32)).save(folder / "float.tif")
    header = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    (folder / "bomb.png").write_bytes(png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:])
    return folder


def test_bad_images_are_listed_with_their_reason_and_not_fatal(bad_images, tmp_path, capsys):
    shards = built("folder", bad_images, tmp_path / "out", min_side="16")
    assert sorted(keys_of(shards)) == ["good", "good2"]
    assert shards.manifest.min_side == 32
    reasons = rejects_of(tmp_path / "out")
    assert reasons["empty"] == "the file is empty"
    assert reasons["text"] == "not an image of a known format"
    assert reasons["header"].startswith("not an image")
    assert reasons["cut-jpg"] == "the JPEG data are cut short"
    assert reasons["cut2"] == "the PNG data are cut short"
    assert "WEBP" in reasons["cut-webp"] or reasons["cut-webp"].startswith("not an image")
    assert reasons["cut"].startswith("cannot be decoded")
    assert reasons["small"] == "40 x 15 is below min_side 16"
    assert reasons["moving"] == "a GIF of several images"
    assert reasons["moving-png"] == "a PNG of several images"
    assert reasons["moving-webp"] == "a WEBP of several images"
    assert reasons["pages"] == "a TIFF of several images"
    assert reasons["float"] == "colour mode F has no clear meaning in 8 bits"
    assert reasons["bomb"] == "20000 x 20000 is more than 200000000 pixels"
    assert len(reasons) == 14
    assert "14 inputs were rejected" in capsys.readouterr().out


def test_a_pipe_that_is_called_like_an_image_is_not_waited_for(folder, tmp_path, make_photo, image_bytes):
    (folder / "a.png").write_bytes(image_bytes(make_photo(1, 32, 32)))
    os.mkfifo(folder / "b.png")
    assert built("folder", folder, tmp_path / "out").manifest.samples == 1


def test_the_folder_of_the_images_is_not_where_shards_go(photos, capsys):
    before = sorted(photos.rglob("*"))
    assert build.main(["class_folders", str(photos), f"{photos}/."]) == 2
    assert capsys.readouterr().err.endswith("is INPUT; shards need a folder of their own\n")
    assert sorted(photos.rglob("*")) == before


def test_on_bad_fail_ends_with_2_and_names_the_file(bad_images, tmp_path, capsys):
    assert build.main(["folder", str(bad_images), str(tmp_path / "out"), "--on_bad=fail"]) == 2
    assert not (tmp_path / "out").exists()
    message = capsys.readouterr().err
    assert message.startswith("error: on_bad: '")
    assert message.count("\n") == 1
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_nothing_but_bad_images_is_a_users_mistake(folder, tmp_path):
    (folder / "empty.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"^INPUT: none of 1 images can be a sample"):
        built("folder", folder, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_shard_of_rejects_alone_is_empty_and_harmless(folder, tmp_path, make_photo, image_bytes):
    (folder / "good.png").write_bytes(image_bytes(make_photo(1, 32, 32)))
    (folder / "empty.png").write_bytes(b"")
    shards = built("folder", folder, tmp_path / "out", per_shard="1")
    assert sorted(entry.samples for entry in shards.manifest.shards) == [0, 1]
    assert shards.manifest.min_side == 32
    assert keys_of(shards) == ["good"]
    for path in shards.paths():
        assert [member.name for member in members(path)] == ["good.png"] * (path.stat().st_size > 1024)


@pytest.mark.parametrize("mode", MODES)
def test_every_promised_colour_mode_is_taken(folder, tmp_path, make_photo, mode):
    grey = make_photo(1, 32, 32)[..., 0]
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    image.save(folder / "a.png")
    shards = built("folder", folder, tmp_path / "out")
    assert MODES[shards.index(0)["mode"][0]] == mode


def test_a_jpeg_with_bytes_after_its_end_is_whole(folder, tmp_path, make_photo, image_bytes):
    """Cameras append previews and padding; decoders stop at the end marker. Some files of ImageNet are like this."""
    (folder / "a.jpg").write_bytes(image_bytes(make_photo(1, 32, 32), "JPEG") + b"appended by a camera")
    assert built("folder", folder, tmp_path / "out").manifest.samples == 1


def test_a_suffix_that_lies_does_not_matter(folder, tmp_path, make_photo, image_bytes):
    (folder / "a.png").write_bytes(image_bytes(make_photo(1, 32, 32), "JPEG"))
    shards = built("folder", folder, tmp_path / "out")
    assert [member.name for member in members(shards.paths()[0])] == ["a.jpg"]


# --------------------------------------------------------------------------------------------------------------- keys

NAMES = [
    "a.jpg", "a.png", "a.b.png", "a_b.png", "with space.png", "ünï/cødé 图.png", "x" * 200 + ".png", "x" * 200 + "y.png",
    "deep/er/" + "é" * 90 + ".png",
    "deep.er/one.two.three.png", "-dash.png", "a-png.jpg", "UPPER.PNG", "quote's.png", "new\nline.png",
]  # fmt: skip


def test_strange_names_become_unique_keys_that_everyone_reads(folder, tmp_path, make_photo, image_bytes):
    import webdataset

    contents = []
    for number, name in enumerate(NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        contents.append(image_bytes(make_photo(number, 32, 32), "PNG"))
        (folder / name).write_bytes(contents[-1])
    shards = built("folder", folder, tmp_path / "out")
    keys = keys_of(shards)
    assert len(set(keys)) == len(NAMES)
    assert rejects_of(tmp_path / "out") == {}
    assert {"a", "a-png", "a_b", "with_space"} <= set(keys)
    samples = list(webdataset.WebDataset(str(shards.paths()[0]), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == keys
    assert sorted(sample["png"] for sample in samples) == sorted(contents)
    assert sorted(member.size for member in members(shards.paths()[0])) == sorted(map(len, contents))


letters = st.characters(exclude_characters="/\0", codec="utf-8")
names = st.text(letters, min_size=1, max_size=120).filter(lambda name: name not in (".", ".."))
relative = st.tuples(st.lists(names, max_size=2), names, st.sampled_from([*SUFFIXES[:4], ".JPG", ".Png"]))


@given(st.lists(relative, max_size=30))
def test_keys_are_unique_short_and_without_dots(paths):
    names = sorted({"/".join([*folders, name + suffix]) for folders, name, suffix in paths})
    files = Files("/data", names)
    assert [item.path for item in files] == [f"/data/{name}" for name in names]
    keys = [item.key for item in files]
    assert len(set(keys)) == len(keys)
    for key in keys:
        assert 0 < len(key.encode()) <= LONGEST_KEY
        assert "." not in key
        assert "\\" not in key
        assert key.isprintable()


@given(st.text("ab", min_size=91, max_size=120), st.text("ab", min_size=91, max_size=120))
def test_long_keys_differ_when_their_names_do(left, right):
    assert (clean_key(left) == clean_key(right)) == (left == right)


def test_names_that_are_no_utf8_are_taken(folder, tmp_path, make_photo, image_bytes):
    names = (b"caf\xe9.png", b"caf\xe8.png", b"ok.png")
    for number, name in enumerate(names):
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            file.write(image_bytes(make_photo(number, 32, 32)))
    with open(os.path.join(os.fsencode(folder), b"\xff.png"), "wb"):
        pass
    keys = keys_of(built("folder", folder, tmp_path / "out"))
    assert len(set(keys)) == 3
    assert set(keys) >= {"ok", "caf_"}
    assert rejects_of(tmp_path / "out") == {"_": "the file is empty"}


def test_linked_folders_are_followed_but_not_in_circles(folder, tmp_path, make_photo, image_bytes):
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "a.png").write_bytes(image_bytes(make_photo(1, 32, 32)))
    (folder / "cats").symlink_to(tmp_path / "cats")
    (tmp_path / "cats" / "up").symlink_to(folder)
    assert keys_of(built("folder", folder, tmp_path / "out")) == ["cats/a"]


def test_a_listing_is_small(tmp_path):
    """A million files must fit into the memory of a login node."""
    names = [f"n{i // 1000:08d}/n{i // 1000:08d}_{i:08d}.JPEG" for i in range(10_000)]
    tracemalloc.start()
    files = Files("/data/imagenet/train", names, np.zeros(len(names), np.int32))
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert files[9_999].key == "n00000009/n00000009_00009999"
    assert held / len(names) < 60
    assert peak / len(names) < 200


def test_hidden_files_are_left_out(folder, tmp_path, make_photo, image_bytes):
    for name in ("seen/a.png", ".hidden.png", ".cache/b.png", "seen/._a.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(image_bytes(make_photo(1, 32, 32)))
    assert keys_of(built("folder", folder, tmp_path / "out")) == ["seen/a"]
    assert keys_of(built("class_folders", folder, tmp_path / "out2")) == ["seen/a"]


# -------------------------------------------------------------------------------------------------------------- classes


def test_classes_are_numbered_by_their_sorted_names_and_loose_images_left_out(folder, tmp_path, make_photo, image_bytes):
    for name in ("zebra/a.png", "ape/deep/b.png", "loose.png", "Cat/c.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(image_bytes(make_photo(1, 32, 32)))
    shards = built("class_folders", folder, tmp_path / "out")
    assert shards.manifest.classes == ("Cat", "ape", "zebra")
    index = shards.index(0)
    labels = dict(zip(index["key"].tolist(), index["class"].tolist(), strict=True))
    assert labels == {b"Cat/c": 0, b"ape/deep/b": 1, b"zebra/a": 2}


def test_a_folder_without_class_folders_says_which_source_takes_it(folder, tmp_path, make_photo, image_bytes):
    (folder / "a.png").write_bytes(image_bytes(make_photo(1, 32, 32)))
    with pytest.raises(UserError, match=r"^INPUT: .*the source 'folder' takes images without classes"):
        built("class_folders", folder, tmp_path / "out")


# -------------------------------------------------------------------------------------------------------- sample photos


def boxes(part: str, tile: int, stride: int) -> dict[str, list]:
    boxes_of: dict[str, list] = {}
    for item in sample_photos.listing(part, sample_photos.Config(tile=tile, stride=stride)).items:
        boxes_of.setdefault(item.path, []).append(item.box)
    return boxes_of


@given(st.integers(8, 200), st.integers(0, 150))
def test_no_pixel_is_in_a_training_tile_and_a_validation_tile(tile, stride):
    train, validation = boxes("train", tile, max(stride, 12)), boxes("validation", tile, max(stride, 12))
    assert set(train) | set(validation) <= set(sample_photos.PHOTOS)
    assert validation
    for photo in train.keys() & validation.keys():
        width, height = sample_photos._photo(photo).size
        seen = np.zeros((2, height, width), bool)
        for part, tiles in enumerate((train[photo], validation[photo])):
            for left, top, right, bottom in tiles:
                assert (right - left, bottom - top) == (tile, tile)
                assert 0 <= left < right <= width
                assert 0 <= top < bottom <= height
                seen[part, top:bottom, left:right] = True
        assert not (seen[0] & seen[1]).any()


def test_the_class_of_a_tile_is_its_photograph_and_its_pixels_are_the_photographs(tmp_path):
    shards = built("sample_photos", "validation", tmp_path / "out", tile="96")
    manifest, index = shards.manifest, shards.index(0)
    assert len(manifest.classes) == 8
    assert manifest.min_side == 96
    assert set(index["class"].tolist()) == set(range(8))
    data = shards.paths()[0].read_bytes()
    for row in range(0, len(index), 7):
        name, left, top = index["key"][row].decode().rsplit("-", 2)
        assert manifest.classes[index["class"][row]] == name
        tile = Image.open(io.BytesIO(data[int(index["hr_offset"][row]) :]))
        photo = next(sample_photos._folder().glob(f"{name}.*"))
        box = (int(left), int(top), int(left) + 96, int(top) + 96)
        assert np.array_equal(np.array(tile), np.array(Image.open(photo).convert("RGB").crop(box)))


def test_tiles_that_fit_no_photograph_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"^tile: no photograph has room for tiles of 5000 pixels in its train part"):
        built("sample_photos", "train", tmp_path / "out", tile="5000")


def test_files_that_no_build_made_are_neither_replaced_nor_removed(photos, tmp_path):
    (tmp_path / "own").mkdir()
    mine = tmp_path / "own" / "own-000001.tar"
    mine.write_text("precious")
    with pytest.raises(UserError, match=r"^OUT: '.*own' holds 'own-000001.tar', which no build wrote"):
        built("class_folders", photos, tmp_path / "own", per_shard="8", on_bad="fail")
    assert [path.name for path in (tmp_path / "own").iterdir()] == [mine.name] and mine.read_text() == "precious"
