"""A PNG that is shortened to its upper rows has the pixels of the whole one."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from photographs import made_photo
from PIL import Image

from sr_dist.data.png_rows import upper_rows
from sr_dist.data.reader import Square, WrongSize, decode, decode_square

MODES = ["RGB", "L", "RGBA", "LA", "P", "1", "I;16"]


def png(pixels: np.ndarray, mode: str = "RGB", **options) -> bytearray:
    file, image = io.BytesIO(), Image.fromarray(pixels)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257 + 3)
    (image if mode == "I;16" else image.convert(mode)).save(file, "PNG", **options)
    return bytearray(file.getvalue())


def interlaced(pixels: np.ndarray) -> bytearray:
    """A grey PNG in Adam7, which Pillow does not write."""
    height, width = pixels.shape
    steps = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    passes = [pixels[top::down, left::across] for top, left, down, across in steps]
    rows = b"".join(b"\0" + row.tobytes() for part in passes if part.size for row in part)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 1)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return bytearray(b"\x89PNG\r\n\x1a\n") + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


@given(
    height=st.integers(1, 90), width=st.integers(1, 60), mode=st.sampled_from(MODES), channels=st.sampled_from([1, 3]),
    level=st.integers(0, 9), data=st.data(),
)  # fmt: skip
@settings(max_examples=300)
def test_a_square_has_the_pixels_of_the_whole_image(height, width, mode, channels, level, data):
    whole = png(made_photo(height + width, height, width), mode, compress_level=level)
    side = data.draw(st.integers(1, min(height, width)))
    top, left = (data.draw(st.integers(0, length - side)) for length in (height, width))
    expected = decode(whole, channels)[:, top : top + side, left : left + side].permute(1, 2, 0).numpy()
    assert np.array_equal(decode_square(whole, channels, (height, width), Square(top, left, side)), expected)


@given(st.integers(0, 2**20), st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_a_damaged_png_is_refused_as_if_it_were_decoded_whole(place, bit):
    """A decoder that stops early does not reach the checksum of the pixels: wrong ones would be returned without a word."""
    data = png(made_photo(1, 96, 96))
    pixels = data.index(b"IDAT") + 4
    data[pixels + place % (len(data) - pixels - 16)] ^= 1 << bit
    for top in (0, 60):
        with pytest.raises(RuntimeError):
            decode_square(data, 3, (96, 96), Square(top, 10, 30))


def test_an_interlaced_png_is_decoded_whole():
    """Its rows come in seven passes over the whole height."""
    photo = made_photo(2, 40, 30)[..., 0].copy()
    data = interlaced(photo)
    assert upper_rows(data, (40, 30), 20) is data
    assert np.array_equal(decode_square(data, 1, (40, 30), Square(3, 5, 17))[..., 0], photo[3:20, 5:22])


def test_only_a_png_of_the_stated_size_is_cut():
    data = png(made_photo(3, 40, 30))
    assert len(upper_rows(data, (40, 30), 20)) == len(data)
    for other, size, bottom in (
        (data, (41, 30), 20), (data, (40, 30), 40), (data, (40, 30), 0), (data[:30], (40, 30), 20), (bytearray(), (40, 30), 20),
        (data[:29] + bytes([data[29] ^ 1]) + data[30:], (40, 30), 20),
    ):  # fmt: skip
        assert upper_rows(other, size, bottom) is other
    with pytest.raises(WrongSize, match="states 31 x 41 pixels, and it has 30 x 40"):
        decode_square(data, 3, (41, 31), Square(0, 0, 20))


def test_a_cut_png_gives_the_upper_rows_to_any_decoder():
    photo = made_photo(4, 64, 48)
    with Image.open(io.BytesIO(upper_rows(png(photo), (64, 48), 33))) as image:
        assert np.array_equal(np.asarray(image), photo[:33])
