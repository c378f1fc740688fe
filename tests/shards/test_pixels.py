"""The preparation of images for shards, against Pillow and numpy used directly."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_shards import built, contents, keys_of, rejects_of
from PIL import Image

from shards.image_header import ORIENTATION, Rejected, read_header, read_plain_jpeg
from shards.pixels import Preparation, geometry, prepare, tiles
from sr_dist.core.errors import UserError
from sr_dist.data.jpeg_rows import band


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def one(data: bytes, lr: bytes | None = None, scale: int = 1, **options):
    (sample,) = prepare(data, lr, Preparation(**options), scale)
    return sample


@pytest.fixture(scope="module")
def photo(make_photo) -> Image.Image:
    return Image.fromarray(make_photo(3, 60, 84))


# ----------------------------------------------------------------------------------- stored unchanged, or converted


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_without_options_the_bytes_stay(photo, kind):
    data = saved(photo, kind)
    sample = one(data)
    assert sample.hr.data == data
    assert sample.conversion is None
    assert one(data, keep=True) == sample


def palette(photo):
    return saved(photo.convert("P"))


def grey16(photo):
    return saved(Image.fromarray(np.asarray(photo)[..., 0].astype(np.uint16) * 257), "TIFF")


@pytest.mark.parametrize(
    ("data_of", "expected", "conversion"),
    [
        (palette, lambda p: p.convert("P").convert("RGB"), "colour mode P"),
        (lambda p: saved(p.convert("1")), lambda p: p.convert("1").convert("L"), "colour mode 1"),
        (lambda p: saved(p, "BMP"), lambda p: p, "BMP"),
        (lambda p: saved(p, "TIFF"), lambda p: p, "TIFF"),
        (lambda p: saved(p.convert("L"), "TIFF"), lambda p: p.convert("L"), "TIFF"),
        (grey16, lambda p: Image.fromarray(np.asarray(p)[..., 0]), "TIFF"),
        (lambda p: saved(p.convert("L"), "GIF"), lambda p: p.convert("L").convert("RGB"), "GIF"),
        (lambda p: saved(p.convert("CMYK"), "TIFF"), lambda p: p.convert("CMYK").convert("RGB"), "TIFF"),
    ],
)
def test_odd_images_become_png_of_the_same_pixels(photo, data_of, expected, conversion):
    sample = one(data_of(photo))
    want = np.asarray(expected(photo))
    assert (sample.hr.suffix, sample.conversion) == ("png", conversion)
    image = opened(sample.hr.data)
    assert image.format == "PNG"
    assert image.mode in ("RGB", "L")
    assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(Image.fromarray(want).convert("RGB")))


def test_a_cmyk_photograph_keeps_its_colours(photo):
    sample = one(saved(photo.convert("CMYK"), "JPEG", quality=98))
    assert (sample.hr.suffix, sample.conversion) == ("png", "colour mode CMYK")
    assert np.abs(np.asarray(opened(sample.hr.data)).astype(int) - np.asarray(photo)).mean() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_are_carried_out_and_never_stored_turned(photo, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = saved(photo, "JPEG", exif=exif)
    sample = one(data)
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # Pillow's transpositions that make these upright
    decoded = opened(data).convert("RGB")
    want = (
        decoded
        if orientation == 1
        else decoded.transpose(Image.Transpose({2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}[orientation]))
    )
    assert len(turn) == 7
    image = opened(sample.hr.data)
    assert (sample.hr.width, sample.hr.height) == image.size == want.size
    assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(want))
    assert (sample.hr.data == data) == (orientation == 1)
    assert image.getexif().get(ORIENTATION, 1) == 1


def test_exif_turned_webp_and_16_bit_png_are_told_apart(photo):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    assert one(saved(photo, "WEBP", exif=exif, lossless=True)).hr.width == 60
    grey = Image.fromarray(np.asarray(photo)[..., 0].astype(np.uint16) * 200)
    assert one(saved(grey)).hr.mode == "I;16"  # unchanged, since readers know it
    small = opened(one(saved(grey), centre_crop=60).hr.data)
    assert small.mode == "L"
    want = (np.asarray(grey)[:, 12:72] / 257 + 0.5).astype(np.uint8)
    assert np.array_equal(np.asarray(small), want)


def test_a_jpeg_with_a_second_image_is_one_photograph(photo):
    """Cameras and telephones append previews (MPO)."""
    data = saved(photo, "MPO", save_all=True, append_images=[photo.resize((20, 20))])
    assert opened(data).format == "MPO"
    assert one(data).hr == (data, "jpg", 84, 60, "RGB")


@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from(["PNG", "BMP"]))
def test_the_pixel_cap_is_read_from_the_header(width, height, kind):
    data = saved(Image.new("L", (width, height)), kind)[:-1] if kind == "BMP" else saved(Image.new("L", (width, height)))
    if width * height > 10_000:
        with pytest.raises(Rejected, match=f"^{width} x {height} is more than 10000 pixels"):
            one(data, max_pixels=10_000)


@given(
    st.integers(1, 200), st.integers(1, 200), st.sampled_from(["RGB", "L", "CMYK"]), st.booleans(), st.sampled_from([0, 1, 2]),
    st.sampled_from([b"", b"a comment"]), st.integers(0, 8),
)  # fmt: skip
def test_the_fast_header_of_a_jpeg_agrees_with_pillow(width, height, mode, progressive, sampling, comment, orientation):
    exif = Image.Exif()
    if orientation:
        exif[ORIENTATION] = orientation
    options = {
        "progressive": progressive,
        "subsampling": sampling,
        "comment": comment,
        "exif": exif.tobytes() if orientation else b"",
    }
    data = saved(Image.new(mode, (width, height)), "JPEG", **options)
    fast = read_plain_jpeg(data)
    assert (fast is None) == (mode == "CMYK" or orientation > 0)
    assert fast in (None, read_header(data))


@given(st.data())
def test_damaged_images_are_rejected_or_are_images(photo, data):
    """Cut, or with changed bytes: the result is a reason or an image that decodes."""
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"]))
    raw = bytearray(saved(photo, kind))
    for _ in range(data.draw(st.integers(0, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw
    try:
        sample = one(bytes(raw), resize=16)
    except Rejected as problem:
        reason = str(problem)
    else:
        reason = "an image"
        opened(sample.hr.data).load()
    assert len(reason.splitlines()) == 1


# --------------------------------------------------------------------------------------------------- crops, sizes, tiles


@pytest.mark.parametrize(
    ("mode", "size"), [("short", (45, 32)), ("squash", (32, 32)), ("crop", (32, 32))]
)  # fmt: skip
def test_resizing_is_pillows_bicubic(photo, mode, size):
    box = (12, 0, 72, 60) if mode == "crop" else (0, 0, 84, 60)
    image = opened(one(saved(photo), resize=32, resize_mode=mode).hr.data)
    want = photo.crop(box).resize(size, Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(image), np.asarray(want))


def test_the_faces_of_the_study_are_cut_from_the_middle_and_made_small(make_photo):
    face = Image.fromarray(make_photo(4, 218, 178))
    image = opened(one(saved(face), centre_crop=144, resize=64).hr.data)
    want = face.crop((17, 37, 161, 181)).resize((64, 64), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(image), np.asarray(want))
    with pytest.raises(Rejected, match="178 x 218 is below centre_crop 200"):
        one(saved(face), centre_crop=200)


@given(st.integers(10, 90), st.integers(10, 90), st.integers(4, 10), st.integers(2, 12))
def test_tiles_cover_every_pixel_and_lie_inside(width, height, tile, stride):
    preparation = Preparation(tile=tile, stride=min(stride, tile))
    seen = np.zeros((height, width), int)
    boxes = list(tiles(width, height, preparation))
    assert len(set(boxes)) == len(boxes)
    for left, top, right, bottom in boxes:
        assert (right - left, bottom - top) == (tile, tile)
        assert left >= 0 and top >= 0 and right <= width and bottom <= height
        seen[top:bottom, left:right] += 1
    assert seen.min() >= 1


@given(
    st.integers(8, 300), st.integers(8, 300), st.integers(1, 12), st.integers(1, 4), st.sampled_from(["short", "squash", "crop"])
)
def test_sizes_lie_on_the_grid_of_the_scale(width, height, units, grid, mode):
    preparation = Preparation(resize=units * grid, resize_mode=mode)
    box, size = geometry(width, height, preparation, grid)
    assert size[0] % grid == 0 and size[1] % grid == 0
    assert min(size) == units * grid
    assert 0 <= box[0] < box[2] <= width
    assert 0 <= box[1] < box[3] <= height
    if mode == "short":
        assert abs(max(size) - units * grid * max(width, height) / min(width, height)) <= grid / 2 + 1e-9


def test_tiles_are_parts_of_the_photograph_named_by_their_place(photo, tmp_path):
    (tmp_path / "in").mkdir()
    photo.save(tmp_path / "in" / "a.png")
    photo.resize((30, 90)).save(tmp_path / "in" / "narrow.png")
    shards = built("folder", tmp_path / "in", tmp_path / "out", tile="32", stride="16")
    assert sorted(keys_of(shards)) == sorted(f"a-{x:04d}-{y:04d}" for x in (0, 16, 32, 48, 52) for y in (0, 16, 28))
    assert rejects_of(tmp_path / "out") == {"narrow": "30 x 90 is below tile 32"}
    for name, data in contents(shards).items():
        x, y = map(int, name.removesuffix(".png").split("-")[1:])
        assert np.array_equal(np.asarray(opened(data)), np.asarray(photo.crop((x, y, x + 32, y + 32))))


@pytest.mark.parametrize(("kind", "options", "suffix"), [
    ("JPEG", {"resize": 20}, "jpg"), ("PNG", {"resize": 20}, "png"), ("WEBP", {"resize": 20}, "png"),
    ("PNG", {"format": "jpg"}, "jpg"), ("PNG", {"format": "webp"}, "webp"), ("JPEG", {"format": "png"}, "png"),
])  # fmt: skip
def test_formats(photo, kind, options, suffix):
    sample = one(saved(photo, kind), **options)
    assert sample.hr.suffix == suffix
    assert opened(sample.hr.data).format == {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[suffix]


def test_written_jpegs_can_be_cut_between_their_rows_and_lose_nothing_by_it(photo):
    data = one(saved(photo), format="jpg", quality=90).hr.data  # 60 pixels high: blocks of 16 begin at 0, 16, 32, 48
    assert np.array_equal(np.asarray(opened(data)), np.asarray(opened(saved(photo, "JPEG", quality=90))))
    part, first = band(bytearray(data), (60, 84), 20, 40)
    assert (first, opened(bytes(part)).size) == (16, (84, 32))


def test_lower_quality_is_smaller(photo):
    sizes = [len(one(saved(photo), format="jpg", quality=quality).hr.data) for quality in (30, 60, 95)]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": True, "resize": 8}, "keep: "),
        ({"stride": 8}, "stride: "),
        ({"resize_mode": "crop"}, "resize_mode: "),
        ({"quality": 80}, "quality: "),
        ({"quality": 80, "keep": True}, "quality: "),
        ({"quality": 80, "format": "png"}, "quality: "),
        ({"tile": 30}, "tile: 30 is not a multiple of scale 4"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(UserError, match=f"^{message}"):
        Preparation(**options).check(4)


# --------------------------------------------------------------------------------------------------------------- pairs


def test_the_lr_of_a_pair_is_cut_where_its_hr_is(photo):
    lr = photo.resize((21, 15), Image.Resampling.BOX)
    made = list(prepare(saved(photo), saved(lr), Preparation(centre_crop=48, tile=24, stride=12), 4))
    assert len(made) == 9
    for sample in made:
        x, y = map(int, sample.key_suffix.split("-")[1:])
        hr_box = (16 + x, 4 + y, 40 + x, 28 + y)  # (84 - 48) / 2 = 18 and (60 - 48) / 2 = 6 lie between points of the grid of 4
        assert np.array_equal(np.asarray(opened(sample.hr.data)), np.asarray(photo.crop(hr_box)))
        assert np.array_equal(np.asarray(opened(sample.lr.data)), np.asarray(lr.crop(tuple(v // 4 for v in hr_box))))


def test_resized_pairs_are_scale_apart_whatever_they_were(photo):
    lr = photo.resize((40, 29))
    sample = one(saved(photo), saved(lr), 4, resize=32)
    assert (sample.hr.width, sample.hr.height, sample.lr.width, sample.lr.height) == (44, 32, 11, 8)
    assert np.array_equal(np.asarray(opened(sample.lr.data)), np.asarray(lr.resize((11, 8), Image.Resampling.BICUBIC)))


def test_an_unchanged_pair_has_its_bytes_and_lr_becomes_png(photo):
    lr = photo.resize((21, 15))
    assert one(saved(photo, "JPEG"), saved(lr), 4).hr.data == saved(photo, "JPEG")
    assert one(saved(photo), saved(lr), 4).lr.data == saved(lr)
    from_jpeg = one(saved(photo), saved(lr, "JPEG"), 4).lr
    assert np.array_equal(np.asarray(opened(from_jpeg.data)), np.asarray(opened(saved(lr, "JPEG"))))
    assert opened(from_jpeg.data).format == "PNG"


@pytest.mark.parametrize(("size", "options", "message"), [
    ((21, 14), {}, "the pair is not 4 times apart: HR 84 x 60, LR 21 x 14"),
    ((15, 21), {"resize": 32}, "the pair has two shapes: HR 84 x 60, LR 15 x 21"),
])  # fmt: skip
def test_pairs_that_do_not_fit_are_rejected_with_both_sizes(photo, size, options, message):
    with pytest.raises(Rejected, match=f"^{message}$"):
        one(saved(photo), saved(photo.resize(size)), 4, **options)
