"""Which files of a folder are scored, with which LR, and how they are read."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from scoring import batches, levels, scored

from sr_dist.core.errors import UserError
from sr_dist.core.resize import imresize
from sr_dist.data.image_pairs import load
from sr_dist.data.images import open_images


def test_hr_images_alone_are_degraded_and_keep_their_names(save):
    images = {"a": save("a.png", 24, 32), "deep/b": save("deep/b.png", 24, 32)}
    (batch,) = scored(save.folder)
    assert batch.names == ("a", "deep/b")
    assert batch.hr.shape == (2, 3, 24, 32)
    assert batch.lr.shape == (2, 3, 12, 16)
    assert batch.label.tolist() == [-1, -1]
    assert not batch.grey
    for name, hr, lr in zip(batch.names, batch.hr, batch.lr, strict=True):
        assert np.array_equal(levels(hr), images[name])
        exact = imresize(torch.from_numpy(images[name]).permute(2, 0, 1).double() / 255, 1 / 2, to_8_bit=True)
        assert torch.equal(lr, exact.float())


def test_pairs_of_hr_and_lr_belong_together_by_name(save):
    hr, lr = save("bird_HR.png", 24, 32), save("bird_LR.png", 12, 16)
    save("bird_SRF_2.png", 24, 32)  # in Set5's folders lie others beside the pairs
    (batch,) = scored(save.folder)
    assert batch.names == ("bird_HR",)
    assert np.array_equal(levels(batch.hr[0]), hr)
    assert np.array_equal(levels(batch.lr[0]), lr)


@pytest.mark.parametrize(
    ("high", "low"), [("bird_hr.png", "bird_lr.png"), ("hr/bird.png", "lr/bird.png"), ("Hr/bird.png", "Lr/x2/birdx2.png")]
)
def test_small_letters_say_the_same(save, high, low):
    hr, lr = save(high, 24, 32), save(low, 12, 16)
    (batch,) = scored(save.folder)
    assert np.array_equal(levels(batch.hr[0]), hr)
    assert np.array_equal(levels(batch.lr[0]), lr)


def test_lr_alone_is_not_taken_for_hr(save):
    save("a_LR.png", 24, 32)
    with pytest.raises(UserError, match=r"^data\.validation: the images in '.*' are called _LR, and none is called _HR"):
        open_images(str(save.folder))


def test_hidden_files_are_no_images(save):
    save("a.png", 24, 32)
    save(".cache/a.png", 24, 32)
    (save.folder / "._a.png").write_bytes(b"\0\5\26\7")  # what macOS leaves in archives
    assert open_images(str(save.folder)).names == ["a"]


def test_hr_images_without_a_partner_are_listed(save):
    save("a_HR.png", 24, 32)
    save("a_LR.png", 12, 16)
    save("b_HR.png", 24, 32)
    save("c_HR.png", 24, 32)
    with pytest.raises(UserError, match=r"^data\.validation: no _LR partner for b_HR\.png, c_HR\.png in "):
        open_images(str(save.folder))


def test_images_stored_as_grey_are_known_as_such_and_not_mixed_with_colour(save):
    for name, mode in (("a.png", "RGB"), ("b.png", "L"), ("c.png", "L"), ("d.jpg", "L"), ("e.png", "LA"), ("f.png", "RGB")):
        save(name, 24, 24, mode)
    loaded = scored(save.folder)
    assert [(batch.names, batch.grey) for batch in loaded] == [(("a",), False), (("b", "c", "d", "e"), True), (("f",), False)]
    grey = loaded[1].hr
    assert torch.equal(grey[:, 0], grey[:, 1])
    assert torch.equal(grey[:, 0], grey[:, 2])


def test_a_palette_image_and_other_formats_are_read_as_pillow_reads_them(save):
    expected = [save("a.png", 24, 24, "P"), save("b.bmp", 24, 24), save("c.tif", 24, 24), save("d.webp", 24, 24, lossless=True)]
    (batch,) = scored(save.folder)
    assert all(np.array_equal(levels(hr), image) for hr, image in zip(batch.hr, expected, strict=True))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_and_not_clipped(save, suffix):
    ramp = (np.arange(32 * 32).reshape(32, 32) * 64).astype(np.uint16)
    Image.fromarray(ramp).save(save.folder / f"a.{suffix}")
    (batch,) = scored(save.folder)
    assert batch.grey
    assert np.abs(batch.hr[0, 0].numpy() - ramp / 65535).max() < 1 / 255


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif"])
def test_a_file_that_is_cut_short_is_a_users_mistake_that_names_it(save, suffix):
    save(f"a.{suffix}", 32, 32)
    path = save.folder / f"a.{suffix}"
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(UserError, match=rf"a\.{suffix}"):
        scored(save.folder)


def test_an_empty_file_and_one_that_ends_early_are_named_in_words_of_ours(save):
    save("a.png", 32, 32)
    path = save.folder / "a.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match=r"a\.png' .*: its data are cut short \("):
        scored(save.folder)
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.png' is not an image that can be read: it is empty \(0 bytes\)$"):
        scored(save.folder)


def test_a_text_with_an_images_name_is_a_users_mistake_that_names_it(save):
    (save.folder / "a.png").write_text("no image")
    with pytest.raises(UserError, match=r"a\.png' is not an image"):
        scored(save.folder)


READ = """
import sys
from sr_dist.data.image_pairs import Batches, load
from sr_dist.data.images import open_images
list(load(Batches(open_images(sys.argv[1]), 2, None, 1), [0]))
"""


def test_a_png_whose_pixels_are_damaged_does_not_end_the_process(save):
    """torchvision's libpng does; a process of its own reads it here."""
    save("a_HR.png", 32, 32)
    save("a_LR.png", 16, 16)
    data = bytearray((save.folder / "a_HR.png").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (save.folder / "a_HR.png").write_bytes(data)
    done = subprocess.run([sys.executable, "-c", READ, str(save.folder)], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr[-300:]
    assert "UserError" in done.stderr.splitlines()[-1]
    assert "a_HR.png" in done.stderr.splitlines()[-1]


def test_an_empty_folder_and_a_missing_one_are_refused_by_the_key(tmp_path, photo_shards):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"^data: no images in '"):
        open_images(str(tmp_path / "empty"), key="data")
    with pytest.raises(UserError, match=r"^data: no folder '.*'; did you mean '.*/empty'\?$"):
        open_images(str(tmp_path / "emty"), key="data")


@pytest.mark.parametrize(
    ("low", "name"),
    [
        ("LR", "a"),
        ("LR", "a_LR"),
        ("LR", "ax2"),
        ("LR/X2", "ax2"),
        ("LR_bicubic/X2", "ax2"),
        ("elsewhere", "a"),
        ("elsewhere", "ax2"),
    ],
)
def test_folders_of_hr_and_lr_belong_together(save, low, name):
    hr, lr = save("HR/deep/a.png", 24, 32), save(f"{low}/deep/{name}.png", 12, 16)
    source = save.folder, None
    if low == "elsewhere":
        source = save.folder / "HR", str(save.folder / low)
    images = batches(source[0], lr=source[1])
    (batch,) = load(images, [0])
    assert batch.names == ("deep/a",)
    assert np.array_equal(levels(batch.hr[0]), hr)
    assert np.array_equal(levels(batch.lr[0]), lr)


def test_a_folder_of_lr_inside_that_of_hr_holds_no_hr(save):
    save("a.png", 24, 32)
    save("small/a.png", 12, 16)
    assert batches(save.folder, lr=str(save.folder / "small")).images.names == ["a"]


def test_missing_partners_in_a_folder_of_lr_are_listed(save):
    for name in "abc":
        save(f"HR/{name}.png", 24, 32)
    save("LR/b.png", 12, 16)
    with pytest.raises(UserError, match=r"no LR for a\.png, c\.png in '.*LR'$"):
        batches(save.folder)


def test_a_folder_of_lr_that_is_not_there_and_one_for_shards_are_refused(save, photo_shards):
    save("HR/a.png", 24, 32)
    save("low/a.png", 12, 16)
    with pytest.raises(UserError, match=r"^lr: no folder '.*/lov'; did you mean '.*/low'\?$"):
        batches(save.folder / "HR", lr=str(save.folder / "lov"))
    with pytest.raises(UserError, match=r"^lr: .* is shards"):
        batches(photo_shards, lr=str(save.folder / "low"))


def test_16_bits_of_colour_are_counted_too_and_read_as_8(save):
    """A PNG written by hand, for Pillow writes none: every level v as v * 257."""
    pixels = save("a.png", 24, 32)
    rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in pixels)
    chunks = {b"IHDR": struct.pack(">IIBBBBB", 32, 24, 16, 2, 0, 0, 0), b"IDAT": zlib.compress(rows), b"IEND": b""}
    whole = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks.items()
    ]
    (save.folder / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(whole))
    loaded = batches(save.folder)
    assert loaded.notes() == ["1 of 1 images of 16 bits, read as 8"]
    assert np.array_equal(levels(loaded[0].hr[0]), pixels)


def test_floats_are_refused_for_nobody_knows_their_white(save):
    Image.fromarray(np.zeros((24, 24), np.float32)).save(save.folder / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif' is stored as floats"):
        scored(save.folder)


def test_a_digest_follows_the_content_of_hr_and_lr(save, photo_shards):
    save("a_HR.png", 24, 32)
    save("a_LR.png", 12, 16)
    before = open_images(str(save.folder)).digest(0)
    assert open_images(str(save.folder)).digest(0) == before
    save("a_LR.png", 12, 16)
    assert open_images(str(save.folder)).digest(0) != before
    shards = open_images(str(photo_shards))
    assert len({shards.digest(i) for i in range(24)}) == 24
