"""Image files of every kind through an untrained network, which is bicubic interpolation, so every expected pixel is known."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps
from safetensors.torch import save_file

from sr_dist.core.colour import luma
from sr_dist.core.errors import UserError
from sr_dist.core.plugins import PACKAGES
from sr_dist.core.resize import imresize
from sr_dist.data.folder_images import FolderImages
from sr_dist.models import image_files, trained
from sr_dist.models.metadata import generator_metadata
from sr_dist.models.tiling import adapt_channels, axis_tiles, upscale_in_tiles
from sr_dist.models.upscaling import refuse_existing, targets
from sr_dist.upscale import Upscale, upscale

CPU = torch.device("cpu")
SRUGAN = {"name": "srugan", "widths": [4, 4], "num_blocks": 1, "num_dense_blocks": 1, "reduction": 2, "skip": "bicubic"}


@pytest.fixture
def bicubic(tmp_path):
    """A weights file of an untrained network: x2, colour."""
    return saved(tmp_path / "weights" / "bicubic.safetensors")


def saved(path, **changes):
    section = {**SRUGAN, **changes}
    path.parent.mkdir(parents=True, exist_ok=True)
    network = trained.build(PACKAGES["generator"], section, 2, "generator")
    save_file(network.state_dict(), path, generator_metadata(section, 2))
    return str(path)


def run(source, path, output, **options):
    """Whether every image was upscaled."""
    return upscale(Upscale(source=source, input=str(path), output=str(output), **options)) == 0


def enlarged(array, levels=255):
    """(H, W) or (H, W, C) by bicubic interpolation."""
    planes = torch.from_numpy(array.astype(np.float64)).reshape(*array.shape[:2], -1).permute(2, 0, 1) / levels
    return (imresize(planes, 2).clamp(0, 1) * levels + 0.5).floor().permute(1, 2, 0).numpy().reshape(array.shape[0] * 2, -1)


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image).astype(np.int64)


def nearly(actual, expected, levels=1):
    assert actual.reshape(expected.shape).shape == expected.shape
    assert np.abs(actual.reshape(expected.shape) - expected).max() <= levels


def test_images_in_hidden_folders_are_left_out_as_in_validation_sets(tmp_path):
    for name in ("a.png", "b/c.PNG", ".thumbnails/a.png", "b/._c.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (40, 40)).save(tmp_path / "in" / name)
    assert [path for path, _ in targets(tmp_path / "in", tmp_path / "out", "png")] == [
        tmp_path / "in" / "a.png", tmp_path / "in" / "b" / "c.PNG",
    ]  # fmt: skip
    assert [path.name for path in FolderImages(tmp_path / "in", None, "data").files] == ["a.png", "c.PNG"]


def test_another_scale_than_the_networks_is_refused(bicubic, tmp_path):
    (tmp_path / "a.png").write_bytes(image_files.png_16(np.zeros((4, 4, 1), ">u2")))
    with pytest.raises(UserError, match=r"^scale: 3, but bicubic upscales by 2$"):
        run(bicubic, tmp_path / "a.png", tmp_path / "b.png", scale=3)
    assert not (tmp_path / "b.png").exists()
    assert run(bicubic, tmp_path / "a.png", tmp_path / "b.png", scale=2)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_generator_that_does_not_enlarge_by_its_scale_is_refused(channels):
    same = adapt_channels(torch.nn.Identity(), 3, 2)
    expected = r"it returns \(1, 3, 5, 4\) for LR of \(1, 3, 5, 4\); it must return \(1, 3, 10, 8\)$"
    with pytest.raises(UserError, match=rf"^generator: {expected}"):
        same(torch.rand(1, channels, 5, 4))


# ---- tiles


@given(size=st.integers(1, 60), tile=st.integers(1, 40), overlap=st.integers(0, 50), scale=st.sampled_from([1, 2, 3, 4]))
def test_weights_of_tiles_add_up_to_one_and_stay_away_from_cuts(size, tile, overlap, scale):
    total = torch.zeros(size * scale)
    for axis_tile in axis_tiles(size, tile, overlap, scale):
        total[axis_tile.low * scale : axis_tile.high * scale] += axis_tile.weight
        position = axis_tile.low + (torch.arange(len(axis_tile.weight)) + 0.5) / scale
        counts = axis_tile.weight > 1e-6
        assert counts.any() and axis_tile.weight.min() >= 0
        assert axis_tile.low == 0 or (position[counts] - axis_tile.low).min() >= overlap / 2 - 1e-4
        assert axis_tile.high == size or (axis_tile.high - position[counts]).min() >= overlap / 2 - 1e-4
    torch.testing.assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize(("height", "width", "tile"), [(37, 50, 16), (16, 33, 16), (7, 40, 8), (40, 1, 16), (33, 33, 32)])
@pytest.mark.parametrize("name", ["msrresnet", "rrdb"])
def test_tiles_equal_the_whole_where_the_overlap_covers_the_view(name, height, width, tile):
    """One MSRResNet block depends on 7 LR pixels on each side, a small RRDB on 21; an overlap of twice that is enough."""
    section, view = {"msrresnet": ({"num_blocks": 1, "width": 4}, 7), "rrdb": ({"num_blocks": 1, "width": 4, "growth": 2}, 21)}[
        name
    ]
    torch.manual_seed(0)
    network = trained.build(PACKAGES["generator"], {"name": name, **section}, 4, "generator").eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    lr = torch.rand(1, 3, height, width)
    whole = upscale_in_tiles(network, lr, 4, None, 0, CPU)
    tiled = upscale_in_tiles(network, lr, 4, tile, 2 * view, CPU)
    torch.testing.assert_close(tiled, whole, atol=1e-5 * float(whole.abs().max()), rtol=0)
    if min(height, width) > tile:
        assert not torch.allclose(upscale_in_tiles(network, lr, 4, tile, 0, CPU), whole, atol=1e-3)


def test_tiles_that_disagree_are_blended_without_a_seam():
    """A network that depends on the whole tile: it returns the tile's mean, which rises from 0 to 1 over the image."""

    def upscale(lr):
        return F.interpolate(lr, scale_factor=2) * 0 + lr.mean((2, 3), keepdim=True)

    slope = torch.linspace(0, 1, 128).expand(1, 1, 8, 128)
    hard, soft = (upscale_in_tiles(upscale, slope, 2, 32, overlap, CPU)[0, 0, 0] for overlap in (0, 16))
    assert hard.diff().abs().max() > 0.24  # tiles differ by a quarter
    assert soft.diff().abs().max() < 0.01  # a quarter over 32 pixels
    assert soft.diff().min() >= -1e-6


def test_the_device_never_sees_more_than_a_tile():
    shapes = []

    def upscale(lr):
        shapes.append(lr.shape[-2:])
        return F.interpolate(lr, scale_factor=2)

    lr = torch.rand(1, 3, 50, 70)
    torch.testing.assert_close(upscale_in_tiles(upscale, lr, 2, 16, 4, CPU), F.interpolate(lr, scale_factor=2))
    assert len(shapes) == 4 * 5 and max(max(shape) for shape in shapes) == 16 + 2 * 4


@pytest.mark.parametrize("tile", [None, 9])
def test_a_tiled_image_equals_the_untiled_one(tile, bicubic, tmp_path, make_photo):
    Image.fromarray(make_photo(1, 20, 31)).save(tmp_path / "a.png")
    assert run(bicubic, tmp_path / "a.png", tmp_path / "b.png", tile=tile, overlap=8)
    nearly(pixels(tmp_path / "b.png"), enlarged(make_photo(1, 20, 31)))


# ---- colours


def test_a_colour_network_restores_grey_as_its_luma():
    grey = torch.rand(2, 1, 5, 4)
    weight = torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    actual = adapt_channels(lambda lr: F.interpolate(lr, scale_factor=2) * weight, 3, 2)(grey)
    torch.testing.assert_close(actual, F.interpolate(grey, scale_factor=2) * (0.299 + 2 * 0.587 + 3 * 0.114))


def test_a_grey_network_restores_the_luma_of_colour_and_leaves_its_hue():
    image = torch.rand(1, 3, 6, 5)
    actual = adapt_channels(lambda lr: F.interpolate(lr, scale_factor=2), 1, 2)(image)
    smooth = imresize(image, 2)
    torch.testing.assert_close(luma(actual), F.interpolate(luma(image), scale_factor=2), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(actual[:, 0] - actual[:, 1], smooth[:, 0] - smooth[:, 1], atol=1e-6, rtol=1e-6)


# ---- kinds of images


def two_levels(original):
    return Image.fromarray(original[..., 0]).convert("1")


KINDS = {
    "RGB": (lambda p: Image.fromarray(p), "RGB", lambda p: p),
    "grey": (lambda p: Image.fromarray(p[..., 0]), "L", lambda p: p[..., 0]),
    "grey and alpha": (lambda p: Image.fromarray(p[..., :2], "LA"), "LA", lambda p: p[..., :2]),
    "RGB and alpha": (lambda p: Image.fromarray(np.dstack([p, p[..., 1]]), "RGBA"), "RGBA", lambda p: np.dstack([p, p[..., 1]])),
    "palette": (
        lambda p: Image.fromarray(p).quantize(16), "RGB", lambda p: np.asarray(Image.fromarray(p).quantize(16).convert("RGB")),
    ),
    "two levels": (lambda p: two_levels(p), "L", lambda p: np.asarray(two_levels(p)) * 255),
}  # fmt: skip


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (17, 12)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_keeps_its_mode(kind, size, bicubic, tmp_path, make_photo):
    make, mode, expected = KINDS[kind]
    original = make_photo(2, *size)
    make(original).save(tmp_path / "a.png")
    assert run(bicubic, tmp_path / "a.png", tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as image:
        assert image.mode == mode and image.size == (2 * size[1], 2 * size[0])
    nearly(pixels(tmp_path / "b.png"), enlarged(expected(original)))


@pytest.mark.parametrize("network", ["colour", "grey"])
@pytest.mark.parametrize("planes", [1, 2, 3, 4])
def test_sixteen_bits_stay_sixteen(planes, network, tmp_path):
    torch.manual_seed(0)
    source = saved(tmp_path / "w.safetensors", channels=1 if network == "grey" else 3)
    values = np.random.default_rng(planes).integers(0, 65536, (9, 7, planes)).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(image_files.png_16(values.astype(">u2")))
    assert run(source, tmp_path / "a.png", tmp_path / "b.png")
    actual = image_files._png_16(tmp_path / "b.png")
    assert actual.dtype == np.uint16 and actual.shape == (18, 14, planes)
    nearly(actual.astype(np.int64), enlarged(values, 65535).reshape(actual.shape), 3)
    assert (actual % 257 != 0).mean() > 0.9  # and not 8 bits that were stretched


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(0, 999))
def test_a_16_bit_png_is_read_by_others(planes, height, width, seed):
    import io

    from torchvision.io import ImageReadMode, decode_image

    values = np.random.default_rng(seed).integers(0, 65536, (height, width, planes)).astype(np.uint16)
    data = image_files.png_16(values.astype(">u2"))
    actual = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.UNCHANGED)
    assert np.array_equal(actual.permute(1, 2, 0).numpy(), values)
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert planes > 1 or np.array_equal(np.asarray(image), values[..., 0])


@pytest.mark.parametrize("planes", [1, 3])
def test_the_transparent_colour_of_a_16_bit_png_becomes_alpha(bicubic, tmp_path, planes):
    """The chunk tRNS names one value per plane. Pixels that differ from it in one plane, by one level, are visible."""
    values = np.full((4, 5, planes), 1000, np.uint16)
    values[:2] = 40_000
    values[3, 4, -1] = 1001
    data = image_files.png_16(values.astype(">u2"))
    chunk = b"tRNS" + np.full(planes, 1000, ">u2").tobytes()
    chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    position = data.index(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(data[:position] + chunk + data[position:])
    image = image_files.read(tmp_path / "a.png")
    expected = np.ones((4, 5))
    expected[2:] = 0
    expected[3, 4] = 1
    assert image.alpha is not None and image.alpha[0].numpy().tolist() == expected.tolist()
    assert torch.equal(image.pixels, torch.from_numpy(values.astype(np.float32) / 65535).permute(2, 0, 1))
    assert run(bicubic, tmp_path / "a.png", tmp_path / "b.png")
    assert image_files.read(tmp_path / "b.png").alpha is not None


def test_a_16_bit_tiff_becomes_a_16_bit_png(bicubic, tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (5, 6)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert run(bicubic, tmp_path / "a.tif", tmp_path / "b.png")
    nearly(pixels(tmp_path / "b.png"), enlarged(values, 65535), 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_as_pillow_does(orientation, bicubic, tmp_path, make_photo):
    original = make_photo(3, 10, 16)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(original).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    assert run(bicubic, tmp_path / "a.png", tmp_path / "b.png")
    nearly(pixels(tmp_path / "b.png"), enlarged(upright))
    assert np.array_equal(image_files._oriented(original, orientation), upright)
    with Image.open(tmp_path / "b.png") as image:
        assert image.getexif().get(0x0112, 1) == 1


def test_exif_rotation_of_16_bits_is_applied(bicubic, tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (4, 6, 3)).astype(np.uint16)
    data = image_files.png_16(values.astype(">u2"))
    tiff = b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHHI", 0x0112, 3, 1, 6, 0, 0)
    chunk = struct.pack(">I", len(tiff)) + b"eXIf" + tiff + struct.pack(">I", zlib.crc32(b"eXIf" + tiff))
    (tmp_path / "a.png").write_bytes(data[:33] + chunk + data[33:])
    assert run(bicubic, tmp_path / "a.png", tmp_path / "b.png")
    actual = image_files._png_16(tmp_path / "b.png")
    nearly(actual.astype(np.int64), enlarged(np.rot90(values, -1), 65535).reshape(actual.shape), 3)


def test_colour_profiles_are_kept(bicubic, tmp_path, make_photo):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(make_photo(1, 6, 6)).save(tmp_path / "a.png", icc_profile=profile)
    (tmp_path / "b.png").write_bytes(image_files.png_16(np.zeros((3, 3, 3), ">u2"), profile))
    for name in ("a", "b"):
        assert run(bicubic, tmp_path / f"{name}.png", tmp_path / f"{name}2.png")
        with Image.open(tmp_path / f"{name}2.png") as image:
            assert image.info["icc_profile"] == profile


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_every_format_is_written(suffix, bicubic, tmp_path, make_photo):
    (tmp_path / "in").mkdir()
    Image.fromarray(make_photo(1, 16, 16)).save(tmp_path / "in" / "a.png")
    assert run(bicubic, tmp_path / "in", tmp_path / "out", format=suffix)
    nearly(pixels(tmp_path / "out" / f"a.{suffix}"), enlarged(make_photo(1, 16, 16)), 40 if suffix == "jpg" else 1)


# ---- folders


@pytest.fixture
def folder(tmp_path, make_photo):
    """Three images, one of them in a subfolder, and a text file."""
    folder_path = tmp_path / "in"
    (folder_path / "deep").mkdir(parents=True)
    Image.fromarray(make_photo(1, 9, 8)).save(folder_path / "a.png")
    Image.fromarray(make_photo(2, 8, 9)).save(folder_path / "a.jpg")
    Image.fromarray(make_photo(3, 7, 7)).save(folder_path / "deep" / "b.webp", lossless=True)
    (folder_path / "notes.txt").write_text("not an image")
    return folder_path


def damage(folder, make_photo):
    whole = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    deep = image_files.png_16(np.random.default_rng(0).integers(0, 65536, (20, 20, 3)).astype(">u2"))
    (folder / "deep" / "cut16.png").write_bytes(deep[:-200])
    spoilt = bytearray(deep)
    spoilt[len(deep) // 2] ^= 255
    (folder / "deep" / "spoilt16.png").write_bytes(spoilt)


def test_a_folder_keeps_its_shape(folder, bicubic, tmp_path):
    assert run(bicubic, folder, tmp_path / "out")
    actual = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert actual == ["a.jpg.png", "a.png.png", "deep/b.png"]
    assert pixels(tmp_path / "out" / "deep" / "b.png").shape == (14, 14, 3)


def test_unreadable_files_are_listed_and_the_others_upscaled(folder, bicubic, tmp_path, make_photo, run_commands):
    damage(folder, make_photo)
    (answer,) = run_commands([("sr_dist.upscale", [bicubic, str(folder), str(tmp_path / "out")])])
    assert answer.code == 1 and not answer.err
    lines = answer.out.splitlines()
    assert [line.split("'")[1].removeprefix(f"{folder}/") for line in lines[:-1]] == [
        "cut.png", "deep/cut16.png", "deep/spoilt16.png", "empty.jpg",
    ]  # fmt: skip
    assert "empty.jpg" in lines[-2] and lines[-2].endswith("it is empty (0 bytes)")
    assert "its data are cut short (" in lines[0]
    assert lines[-1] == f"3 of 7 images enlarged by 2 with bicubic: {tmp_path / 'out'}"
    assert len([p for p in (tmp_path / "out").rglob("*") if p.is_file()]) == 3  # and no incomplete file


def test_existing_files_of_a_folder_are_skipped_and_a_named_one_is_refused(folder, bicubic, tmp_path, capsys):
    (tmp_path / "out" / "deep").mkdir(parents=True)
    (tmp_path / "out" / "deep" / "b.png").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"^OUTPUT: '.*deep/b\.png' would be overwritten; say --overwrite"):
        run(bicubic, folder / "a.png", tmp_path / "out" / "deep" / "b.png")
    assert [p.name for p in (tmp_path / "out").rglob("*") if p.is_file()] == ["b.png"]
    assert run(bicubic, folder, tmp_path / "out")
    assert "2 of 2 images enlarged by 2 with bicubic" in (line := capsys.readouterr().out)
    assert "; 1 exist and were skipped, --overwrite replaces them" in line
    assert (tmp_path / "out" / "deep" / "b.png").read_bytes() == b"mine"
    assert run(bicubic, folder, tmp_path / "out", overwrite=True)
    assert pixels(tmp_path / "out" / "deep" / "b.png").shape == (14, 14, 3)


def test_an_image_is_never_its_own_output(folder, bicubic):
    with pytest.raises(UserError, match="one of the images that are read"):
        run(bicubic, folder / "a.png", folder / "a.png", overwrite=True)
    with pytest.raises(UserError, match="one of the images that are read"):
        refuse_existing(targets(folder / "deep", folder / "deep", "webp"), True)


def test_outputs_inside_the_input_are_not_read_again(folder, bicubic):
    assert run(bicubic, folder, folder / "big")
    assert run(bicubic, folder, folder / "big", overwrite=True)
    assert len([p for p in (folder / "big").rglob("*") if p.is_file()]) == 3


def test_jpeg_with_alpha_is_reported_and_not_flattened(bicubic, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    Image.new("RGBA", (4, 4)).save(tmp_path / "in" / "a.png")
    assert not run(bicubic, tmp_path / "in", tmp_path / "out", format="jpg")
    assert "alpha channel, which JPEG does not hold" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_folder_without_images_is_the_users_mistake(bicubic, tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match=r"^INPUT: no images in"):
        run(bicubic, tmp_path / "in", tmp_path / "out")


def test_a_foreign_file_enlarges_too(tmp_path, make_photo):
    torch.save({"conv1.weight": torch.zeros(2, 1, 1, 1), "conv1.bias": torch.ones(2), "conv2.weight": torch.zeros(2, 2, 1, 1),
                "conv2.bias": torch.ones(2), "conv3.weight": torch.zeros(1, 2, 1, 1), "conv3.bias": torch.full((1,), 0.5)},
               tmp_path / "srcnn.pth")  # fmt: skip
    Image.fromarray(make_photo(1, 5, 4)[..., 0]).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="give --scale=N"):
        run(str(tmp_path / "srcnn.pth"), tmp_path / "a.png", tmp_path / "b.png")
    assert run(str(tmp_path / "srcnn.pth"), tmp_path / "a.png", tmp_path / "b.png", scale=3)
    assert pixels(tmp_path / "b.png").shape == (15, 12) and set(pixels(tmp_path / "b.png").ravel()) == {128}
