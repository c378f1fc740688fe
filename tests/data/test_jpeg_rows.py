from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from photographs import made_photo
from PIL import Image

from sr_dist.data.jpeg_rows import band
from sr_dist.data.reader import decode


def jpeg(height: int, width: int, **options) -> bytearray:
    return saved(made_photo(height + width, height, width), **options)


def saved(pixels: np.ndarray, mode: str = "RGB", **options) -> bytearray:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "JPEG", **options)
    return bytearray(file.getvalue())


@given(
    height=st.integers(1, 150), width=st.integers(1, 60), sampling=st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
    quality=st.sampled_from([30, 75, 95, 100]), mode=st.sampled_from(["RGB", "L"]), channels=st.sampled_from([1, 3]),
    more=st.sampled_from([{}, {"optimize": True}, {"comment": b"\xff\xda\xff\xd0"}]),
    behind=st.sampled_from([b"", b"\xff\xd0more"]), data=st.data(),
)  # fmt: skip
@settings(max_examples=300)
def test_a_band_has_the_pixels_of_the_whole_image(height, width, sampling, quality, mode, channels, more, behind, data):
    """For any chroma subsampling, also at the borders of the band, where chroma is interpolated from neighbours."""
    whole = jpeg(height, width, mode=mode, quality=quality, subsampling=sampling, restart_marker_rows=1, **more) + behind
    top = data.draw(st.integers(0, height - 1))
    bottom = data.draw(st.integers(top + 1, height))
    part, first = band(whole, (height, width), top, bottom)
    expected, result = decode(whole, channels), decode(part, channels)
    assert torch.equal(result[:, top - first : bottom - first], expected[:, top:bottom])
    assert result.shape[1] <= bottom - top + 2 + 2 * 15  # a row of context on each side, and the rest of its blocks


@pytest.mark.parametrize("sampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_every_band_of_coloured_noise_has_its_pixels(sampling):
    """In noise, neighbours differ so much that a missing row of context shows."""
    noise = np.random.default_rng(0).integers(0, 256, (35, 12, 3), np.uint8).repeat(2, 0).repeat(2, 1)
    whole = saved(noise, subsampling=sampling, quality=95, restart_marker_rows=1)
    expected = decode(whole, 3)
    for top in range(70):
        for bottom in range(top + 1, 71):
            part, first = band(whole, (70, 24), top, bottom)
            assert torch.equal(decode(part, 3)[:, top - first : bottom - first], expected[:, top:bottom])


def test_a_crop_in_the_middle_needs_less_than_half_of_the_file():
    whole = jpeg(256, 256, quality=95, restart_marker_rows=1)
    part, first = band(whole, (256, 256), 81, 177)
    assert first == 80  # of blocks of 16: from 80 to 178 are rows 5 to 11
    assert decode(part, 3).shape == (3, 112, 256)
    assert len(part) < 0.5 * len(whole)


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}, {"restart_marker_blocks": 3}, {"restart_marker_rows": 2}]
)
def test_a_jpeg_with_other_markers_is_not_cut(options):
    whole = jpeg(96, 64, **{"restart_marker_rows": 1, **options} if "progressive" in options else options)
    assert band(whole, (96, 64), 40, 50) == (whole, 0)


def test_a_jpeg_with_separate_scans_per_colour_is_not_cut():
    whole = jpeg(96, 64, restart_marker_rows=1)
    scan = whole.index(b"\xff\xda")
    assert whole[scan + 4] == 3  # components in the scan
    whole[scan + 4] = 1
    assert band(whole, (96, 64), 40, 50) == (whole, 0)


@pytest.mark.parametrize("size", [(95, 64), (97, 64), (200, 64), (96, 63), (64, 96)])
def test_a_jpeg_of_another_size_is_not_cut(size):
    whole = jpeg(96, 64, restart_marker_rows=1)
    assert band(whole, size, 40, 50) == (whole, 0)


def test_a_jpeg_with_a_wrong_or_missing_marker_is_not_cut():
    """Marker numbers repeat after eight rows, so a later marker with the same number must not be taken for a missing one."""
    whole = jpeg(400, 64, restart_marker_rows=1)
    assert band(whole, (400, 64), 70, 90)[0] != whole
    third = whole.index(b"\xff\xd2")
    wrong, missing = bytearray(whole), whole[:third] + whole[third + 2 :]
    wrong[third + 1] = 0xD7
    for damaged in (wrong, missing):
        assert band(damaged, (400, 64), 70, 90) == (damaged, 0)
        assert len(band(damaged, (400, 64), 0, 10)[0]) < 1500  # not affected by the damage


MARKED = bytes(jpeg(64, 48, restart_marker_rows=1))


@given(
    st.one_of(
        st.binary(max_size=80).map(lambda tail: b"\xff\xd8" + tail),
        st.integers(0, len(MARKED)).map(lambda size: MARKED[:size]),
        st.tuples(st.integers(2, 700), st.integers(0, 255)).map(
            lambda change: MARKED[: change[0]] + bytes([change[1]]) + MARKED[change[0] + 1 :]
        ),
    )
)
@settings(max_examples=400)
def test_damaged_data_is_cut_or_returned_whole(data):
    part, first = band(bytearray(data), (64, 48), 20, 30)
    assert 0 <= first <= 19
    assert isinstance(part, bytearray)


def test_grey_and_colour_show_the_same_rows():
    whole = jpeg(80, 40, restart_marker_rows=1, subsampling=2)
    part, first = band(whole, (80, 40), 33, 60)
    grey, colour = decode(part, 1)[0].numpy(), decode(part, 3).numpy()
    assert grey.shape == colour.shape[1:]
    luma = colour.transpose(1, 2, 0) @ np.array([0.299, 0.587, 0.114])
    assert np.abs(grey - luma).mean() < 2
    assert first == 32
