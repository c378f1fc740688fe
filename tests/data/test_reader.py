from __future__ import annotations

import io
import re
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_shards import handmade
from PIL import Image

from sr_dist.data.format import ShardError, open_shards
from sr_dist.data.jpeg_rows import band
from sr_dist.data.reader import ShardReader, Square, decode

# ------------------------------------------------------------------------------------------------------------- decoding

GREY = np.arange(32 * 40).reshape(32, 40)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA"])
def test_lossless_images_are_decoded_as_pillow_does(make_photo, kind, mode):
    """In every mode that shards accept. Alpha is dropped, not blended."""
    image = Image.fromarray(make_photo(1, 32, 40)).convert(mode)
    if "A" in mode:
        image.putalpha(Image.fromarray((GREY % 256).astype(np.uint8)))
    data = saved(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    expected = np.array(image.convert("RGB"))
    assert np.array_equal(decode(data, 3).permute(1, 2, 0).numpy(), expected)
    grey = decode(data, 1)
    assert grey.shape == (1, 32, 40)
    assert np.abs(grey[0].numpy().astype(int) - np.array(image.convert("L")).astype(int)).max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_become_eight(channels):
    data = saved(Image.fromarray((GREY * 50).astype(np.uint16)), "PNG")
    result = decode(data, channels)
    assert result.dtype == torch.uint8
    assert result.shape == (channels, 32, 40)
    assert np.abs(result[0].numpy() - GREY * 50 / 257).max() <= 1


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (saved(Image.effect_noise((64, 64), 80), "JPEG")[:900], "Image is incomplete or truncated"),
        (b"no image", "it is no image of a known format"),
        (b"", r"it is empty \(0 bytes\)"),
    ],
)
def test_reasons_have_no_address_of_an_object_and_no_line_of_code(data, reason):
    with pytest.raises(RuntimeError, match=rf"^{reason}$"):
        decode(data, 3)


def test_a_decompression_bomb_is_an_error_that_names_it(image_bytes, make_photo, tmp_path):
    """Its header is enough."""
    huge = bytearray(image_bytes(make_photo(1, 20, 20)))
    huge[16:24] = struct.pack(">II", 15_000, 14_000)
    huge[29:33] = struct.pack(">I", zlib.crc32(huge[12:29]))
    folder = handmade(tmp_path, [bytes(huge)], sizes=[(20, 20)])
    with pytest.raises(ShardError, match=r"cannot be decoded: 15000 x 14000 is more than 200000000 pixels"):
        ShardReader(open_shards(str(folder))).image(0, 0, "hr", 3)


READ_ALL = """
import sys
from sr_dist.data.jpeg_rows import band
from sr_dist.data.format import ShardError, open_shards
from sr_dist.data.reader import ShardReader, Square
reader = ShardReader(open_shards(sys.argv[1]))
for row in range(len(reader.index(0))):
    try:
        whole = reader.image(0, row, "hr", 3)
        assert (reader.square(0, row, "hr", 3, Square(9, 3, 16)) == whole[:, 9:25, 3:19].permute(1, 2, 0).numpy()).all()
        print("decoded")
    except ShardError as problem:
        print(problem)
"""


def test_images_damaged_before_packing_are_named_and_do_not_crash_the_process(image_bytes, make_photo, tmp_path):
    """Their checksum is right. torchvision's libpng ends the whole process for some of them, so a child process reads them."""
    broken = []
    for kind in ("PNG", "JPEG", "WEBP"):
        for offset in range(100, 1100, 100):
            data = bytearray(image_bytes(make_photo(1, 32, 32), kind))
            data[offset % len(data)] ^= 0xFF
            broken.append(bytes(data))
    broken += [data[: len(data) // 2] for data in broken[::10]]
    folder = handmade(tmp_path, broken, sizes=[(32, 32)] * len(broken))
    done = subprocess.run([sys.executable, "-c", READ_ALL, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-300:]
    lines = done.stdout.splitlines()
    assert len(lines) == len(broken)
    for number, line in enumerate(lines):
        assert line == "decoded" or re.search(rf"t-000000\.tar': 'sample{number}' cannot be decoded", line)
    assert all(line != "decoded" for line in lines[:10])  # every chunk of a PNG has a checksum


# -------------------------------------------------------------------------------------------------------------- squares


@pytest.fixture(scope="module")
def sizes_and_kinds(tmp_path_factory, make_photo, image_bytes) -> ShardReader:
    """Images of 5 to 70 pixels: PNG, JPEG with restart markers, and JPEG without."""
    images = []
    for number in range(24):
        shape = make_photo(number, 5 + number * 37 % 66, 5 + number * 23 % 66)
        kind, options = (("PNG", {}), ("JPEG", {"restart_marker_rows": 1}), ("JPEG", {}))[number % 3]
        images.append(image_bytes(shape, kind, **options))
    return ShardReader(open_shards(str(handmade(tmp_path_factory.mktemp("kinds"), images))))


@given(st.data())
def test_a_square_is_the_part_of_the_whole_image(sizes_and_kinds, data):
    reader, row = sizes_and_kinds, data.draw(st.integers(0, 23))
    channels = data.draw(st.sampled_from([1, 3]))
    whole = reader.image(0, row, "hr", channels).permute(1, 2, 0).numpy()
    height, width = whole.shape[:2]
    assert reader.size(0, row, "hr") == (height, width)
    side = data.draw(st.integers(1, 80))
    top, left = (data.draw(st.integers(0, max(length - side, 0))) for length in (height, width))
    result = reader.square(0, row, "hr", channels, Square(top, left, side))
    assert result.shape == (side, side, channels)
    assert result.dtype == np.uint8
    rows, columns = (np.minimum(np.arange(begin, begin + side), end - 1) for begin, end in ((top, height), (left, width)))
    assert np.array_equal(result, whole[rows][:, columns])  # the border of a small image is repeated


def test_a_square_of_a_missing_member_is_none(sizes_and_kinds):
    assert sizes_and_kinds.square(0, 0, "lr", 3, Square(0, 0, 4)) is None


def test_small_pairs_are_repeated_alike(tmp_path, make_photo, image_bytes):
    lr = make_photo(1, 2, 3)
    hr = lr.repeat(2, 0).repeat(2, 1)
    reader = ShardReader(open_shards(str(handmade(tmp_path, [image_bytes(hr)], [image_bytes(lr)]))))
    large, small = (reader.square(0, 0, member, 3, Square(0, 0, side)) for member, side in (("hr", 8), ("lr", 4)))
    assert np.array_equal(large[::2, ::2], small)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("size", [(40, 60), (60, 40), (90, 90), (40, 40)])
def test_an_index_that_is_wrong_about_sizes_is_an_error(tmp_path, make_photo, image_bytes, kind, size):
    data = image_bytes(make_photo(1, 48, 48), kind, **({"restart_marker_rows": 1} if kind == "JPEG" else {}))
    reader = ShardReader(open_shards(str(handmade(tmp_path, [data], sizes=[size]))))
    width, height = size
    with pytest.raises(ShardError, match="the hr image of 'sample0' does not have the size in the index"):
        reader.square(0, 0, "hr", 3, Square(height - 20, width - 20, 20))


def test_a_square_of_a_damaged_jpeg_is_that_of_the_whole_decoded_image(tmp_path, make_photo, image_bytes):
    """The decoder accepts the whole file with a warning, but not the rows alone, as with bytes that look like a marker."""
    good, damaged = image_bytes(make_photo(1, 96, 96), "JPEG", restart_marker_rows=1), []
    begin = good.index(b"\xff\xd0")
    for offset in range(begin + 10, len(good) - 10, 25):
        damaged.append(good[:offset] + b"\xff\x4a" + good[offset + 2 :])
    reader = ShardReader(open_shards(str(handmade(tmp_path, damaged))))
    fell_back = 0
    for row, data in enumerate(damaged):
        part, _ = band(bytearray(data), (96, 96), 0, 20)
        try:
            whole = reader.image(0, row, "hr", 3)
        except ShardError:
            continue
        try:
            decode(part, 3)
        except RuntimeError:
            fell_back += 1
            expected = whole[:, 0:20, 4:24].permute(1, 2, 0).numpy()
            assert np.array_equal(reader.square(0, row, "hr", 3, Square(0, 4, 20)), expected)
    assert fell_back
