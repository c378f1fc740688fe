"""Options of `sr_dist.upscale`: patterns, names, formats, scales, memory, ranks. The network is bicubic interpolation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from PIL import Image, ImageCms
from test_upscaling import bicubic, enlarged, folder, nearly, pixels, run  # noqa: F401 - fixtures
from torch import nn

from sr_dist.core.errors import UserError
from sr_dist.core.plugins import PACKAGES
from sr_dist.core.resize import imresize
from sr_dist.models import image_files, tile_sizes, trained, upscaler
from sr_dist.models.tile_sizes import automatic_tile, bytes_per_pixel, with_smaller_tiles

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def written(out):
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())


# ---- which files, and under which names


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("in/*", ["a.jpg.png", "a.png.png"]), ("in/**/*.webp", ["deep/b.png"]), ("in/a.p?g", ["a.png"])],
)
def test_patterns_keep_the_folders_below_their_fixed_part(pattern, expected, folder, bicubic, tmp_path):  # noqa: F811
    assert run(bicubic, pattern, "out")
    assert written(tmp_path / "out") == expected


def test_a_pattern_without_images_is_the_users_mistake(folder, bicubic):  # noqa: F811
    with pytest.raises(UserError, match=r"^INPUT: no images in 'in/\*.bmp'"):
        run(bicubic, "in/*.bmp", "out")
    with pytest.raises(UserError, match=r"^OUTPUT: 'in/a.png' is a file, but INPUT is a pattern"):
        run(bicubic, "in/*", "in/a.png")


@pytest.mark.parametrize("out", ["new/", "new.d/", "new"])
def test_one_image_goes_into_a_folder_that_does_not_exist(out, folder, bicubic, tmp_path):  # noqa: F811
    assert run(bicubic, "in/a.jpg", out, suffix="_x2", ext="auto")
    assert written(tmp_path / out) == ["a_x2.jpg"]


def test_suffix_and_format_name_the_results(folder, bicubic, tmp_path):  # noqa: F811
    assert run(bicubic, "in", "out", suffix="_x2", ext="auto")
    assert written(tmp_path / "out") == ["a_x2.jpg", "a_x2.png", "deep/b_x2.webp"]
    assert run(bicubic, "in", "tiff", ext="tif")
    assert written(tmp_path / "tiff") == ["a.jpg.tif", "a.png.tif", "deep/b.tif"]
    assert run(bicubic, "in", "in", suffix="_x2")  # beside the images
    expected = "a.jpg a.jpg_x2.png a.png a.png_x2.png deep/b.webp deep/b_x2.png notes.txt"
    assert written(tmp_path / "in") == expected.split()
    with pytest.raises(ValueError, match=r"ext: tif, but format: png, which is its older name"):
        run(bicubic, "in", "out", ext="tif", format="png")
    with pytest.raises(ValueError, match=r"suffix: 'a/b' cannot be a part"):
        run(bicubic, "in", "out", suffix="a/b")


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp"])
def test_every_format_is_read_and_written(suffix, bicubic, tmp_path, make_photo):  # noqa: F811
    photo = np.kron(make_photo(1, 6, 5), np.ones((8, 8, 1), np.uint8))  # flat, so that JPEG loses little
    Image.fromarray(photo).save(f"a.{suffix}", **({"quality": 100, "subsampling": 0} if suffix[0] == "j" else {}), **(
        {"lossless": True} if suffix == "webp" else {}))  # fmt: skip
    assert run(bicubic, f"a.{suffix}", f"b.{suffix}")
    with Image.open(f"b.{suffix}") as image:
        assert image.size == (80, 96) and image.format == image_files.FORMATS[f".{suffix}"]
    nearly(pixels(f"b.{suffix}"), enlarged(photo), 40 if suffix[0] == "j" else 1)


# ---- what is refused, and what is kept


def test_what_looks_like_an_image_and_is_left_out_is_named(bicubic, folder, capsys, make_photo):  # noqa: F811
    photo = Image.fromarray(make_photo(1, 6, 5))
    for name in ("in/scan", "in/.hidden", "in/deep/old.dat"):
        photo.save(name, format="PNG")
    for name in ("gone.png", ".gone.png"):
        (folder / name).symlink_to("nowhere.png")
    assert run(bicubic, "in", "out")
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    suffixes = ".jpg .jpeg .png .webp .bmp .tif .tiff"
    assert notes == [
        "note: 'in/gone.png': links to nothing are left out",
        f"note: 'in/deep/old.dat' and 1 more: images without the suffix of one ({suffixes}) are left out",
    ]


def test_moving_pictures_are_refused_with_the_reason(bicubic, folder, capsys):  # noqa: F811
    frames = [Image.new("RGB", (8, 8), (value, 0, 0)) for value in (0, 90, 180)]
    for name, form in (("in/m.webp", "WEBP"), ("in/m.png", "PNG"), ("in/m.gif", "GIF"), ("in/m.tif", "TIFF")):
        frames[0].save(name, form, save_all=True, append_images=frames[1:])
    (open("in/m.mp4", "wb")).close()
    assert not run(bicubic, "in", "out")
    out = capsys.readouterr().out
    assert "note: 'in/m.gif' and 1 more: moving pictures are left out" in out
    for name, kind in (("m.webp", "frames"), ("m.png", "frames"), ("m.tif", "pages")):
        assert f"failed: 'in/{name}': it has 3 {kind}, and only still images are enlarged" in out
    assert "3 of 6 images" in out
    assert not run(bicubic, "in/m.gif", "out/m.png") and "it has 3 frames" in capsys.readouterr().out
    assert not run(bicubic, "in/m.mp4", "out/m.png") and "it is a film" in capsys.readouterr().out


@pytest.mark.parametrize("ext", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("form", ["jpg", "png", "webp", "png16"])
def test_exif_is_kept_upright_without_what_describes_the_pixels(form, ext, bicubic, tmp_path):  # noqa: F811
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x8298] = 6, "Maker", "(c) A"
    exif[0x8769] = {0x829A: (1, 50), 0x9003: "2020:01:01 00:00:00", 0xA002: 12}
    exif[0x8825] = {1: "N", 2: (1.0, 2.0, 3.0)}
    name = "a.png" if form == "png16" else f"a.{form}"
    if form == "png16":
        (tmp_path / name).write_bytes(image_files.png_16(np.zeros((8, 12, 3), ">u2"), None, exif.tobytes()))
    else:
        Image.new("RGB", (12, 8), (9, 90, 200)).save(name, exif=exif)
    assert run(bicubic, name, f"b.{ext}")
    with Image.open(f"b.{ext}") as image:
        assert image.size == (16, 24)  # turned
        actual = image.getexif()
        assert (actual.get(0x0112, 1), actual[0x010F], actual[0x8298]) == (1, "Maker", "(c) A")
        assert dict(actual.get_ifd(0x8769)) == {0x829A: (1, 50), 0x9003: "2020:01:01 00:00:00"}
        assert dict(actual.get_ifd(0x8825)) == {1: "N", 2: (1.0, 2.0, 3.0)}


def test_tags_that_lay_out_a_tiff_stay_in_it(bicubic):  # noqa: F811
    Image.new("RGB", (12, 8)).save("a.tif", compression="tiff_lzw", description="a hill")
    assert run(bicubic, "a.tif", "b.jpg")
    with Image.open("b.jpg") as image:
        assert dict(image.getexif()) == {0x010E: "a hill"}


def test_damaged_exif_loses_no_image(bicubic, tmp_path):  # noqa: F811
    Image.new("RGB", (12, 8)).save("a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff" + bytes(7))
    assert run(bicubic, "a.jpg", "b.jpg") and (tmp_path / "b.jpg").exists()


def test_exif_that_does_not_fit_is_left_out_and_named(bicubic, capsys):  # noqa: F811
    """A JPEG has one segment of 64 KB for EXIF; a PNG may have more."""
    exif = Image.Exif()
    exif[0x010F], exif[0x010E] = "Maker", "x" * 70_000
    Image.new("RGB", (12, 8), (9, 90, 200)).save("a.png", exif=exif)
    assert run(bicubic, "a.png", "b.jpg") and run(bicubic, "a.png", "c.png")
    assert "note: 'b.jpg': its EXIF of " in (out := capsys.readouterr().out) and "c.png': its EXIF" not in out
    with Image.open("b.jpg") as jpeg, Image.open("c.png") as png:
        assert jpeg.size == (24, 16) and not jpeg.getexif()
        assert png.getexif()[0x010E] == "x" * 70_000


def test_a_large_profile_is_split_over_segments_of_a_jpeg(bicubic, capsys):  # noqa: F811
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + bytes(200_000)
    Image.new("RGB", (12, 8), (9, 90, 200)).save("a.png", icc_profile=profile)
    assert run(bicubic, "a.png", "b.jpg") and "note: 'b.jpg'" not in capsys.readouterr().out
    with Image.open("b.jpg") as image:
        assert image.info["icc_profile"] == profile


# ---- scale and precision


@pytest.mark.parametrize("outscale", [0.5, 1, 2])
def test_an_outscale_that_shrinks_is_noted(outscale, bicubic, make_photo, capsys):  # noqa: F811
    Image.fromarray(make_photo(1, 8, 8)).save("a.png")
    assert run(bicubic, "a.png", "b.png", outscale=outscale)
    note = "note: outscale: 0.5 is below 1, so the results are smaller than the images\n"
    assert (note in capsys.readouterr().out) == (outscale < 1)


@pytest.mark.parametrize(("outscale", "size"), [(2, (14, 18)), (3, (21, 27)), (1.5, (11, 14)), (1, (7, 9)), (1.65, (12, 15))])
def test_outscale_resizes_the_networks_image(outscale, size, bicubic, tmp_path, make_photo, capsys):  # noqa: F811
    """7 x 1.65 = 11.55 and 9 x 1.65 = 14.85 are rounded up, as MATLAB does."""
    photo = make_photo(1, 9, 7)
    Image.fromarray(photo).save("a.png")
    assert run(bicubic, "a.png", "b.png", outscale=outscale)
    assert f"enlarged by {outscale:g} with" in capsys.readouterr().out
    with Image.open("b.png") as image:
        assert image.size == size
    if outscale == 1:
        planes = torch.from_numpy(photo).permute(2, 0, 1).double() / 255
        expected = (imresize(imresize(planes, 2), 0.5).clamp(0, 1) * 255 + 0.5).floor().permute(1, 2, 0).numpy()
        nearly(pixels("b.png"), expected)


def test_half_differs_by_little(tmp_path, make_photo):
    section = {"name": "rrdb", "num_blocks": 1, "width": 8, "growth": 4, "skip": "bicubic"}
    torch.manual_seed(0)
    network = trained.TrainedGenerator("n", None, 2, trained.build(PACKAGES["generator"], section, 2, "g"), tmp_path, "", section)
    whole, half = (upscaler.Upscaler(network, CPU, half=half)(make_photo(1, 20, 20)).astype(int) for half in (False, True))
    assert 0 < np.abs(whole - half).max() <= 8


# ---- memory


def test_the_need_of_a_network_is_counted_by_hand():
    """One convolution from 3 to 64 channels, and one back to 3: at most input, 64 planes and 3 planes live at once. With the
    ReLU of torch, 64 planes twice."""
    network = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 3, 3, padding=1))
    weights = 4 * (3 * 64 * 9 * 2 + 64 + 3)
    assert 4 * (64 * 2) <= bytes_per_pixel(network, 3) <= 4 * (3 + 64 * 2 + 3) + weights / tile_sizes.PROBE**2


def test_only_images_that_do_not_fit_are_cut(monkeypatch):
    monkeypatch.setattr(tile_sizes, "free_bytes", lambda device: 2 * 1000 * 250_000)  # half of it is for 250,000 pixels
    assert automatic_tile((500, 500), 1000, 32, CPU) is None
    assert automatic_tile((500, 501), 1000, 32, CPU) == 432  # 500 - 2 x 32 = 436, and a multiple of 16
    assert automatic_tile((9000, 9000), 1000, 240, CPU) == 32  # never less


def test_images_of_a_batch_share_the_memory(monkeypatch):
    """1000 bytes per pixel and 4 images: of 64 MB, half is for 8000 pixels of each. 89 - 2 x 4 = 81, and a multiple of 16."""

    class Counting(nn.Module):
        largest = 0

        def forward(self, lr):
            self.largest = max(self.largest, len(lr) * lr.shape[2] * lr.shape[3])
            return imresize(lr, 2)

    network = Counting()
    one = trained.TrainedGenerator("n", None, 2, network, Path("n"), "", {"name": "n"})
    monkeypatch.setattr(upscaler, "bytes_per_pixel", lambda network, channels: 1000)
    monkeypatch.setattr(tile_sizes, "free_bytes", lambda device: 64_000_000)
    batch = torch.rand(4, 3, 200, 100)
    sr = upscaler.Upscaler(one, CPU, overlap=4)(batch)
    assert network.largest == 4 * 88 * 84 <= 32_000  # the tile in the middle of a side sees 4 more on both ends of it
    assert (sr - imresize(batch, 2).clamp(0, 1)).abs().max() < 1e-5
    network.largest = 0
    upscaler.Upscaler(one, CPU, overlap=4)(batch[:1])
    assert network.largest == 200 * 100  # one image fits


def test_memory_that_torch_holds_and_does_not_use_is_free(monkeypatch):
    """Of 10 GB that torch has from the driver, tensors use 3; the driver has 2 more."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2_000, 80_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 10_000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 3_000)
    assert tile_sizes.free_bytes(torch.device("cuda", 0)) == 2_000 + 10_000 - 3_000


def test_a_small_machine_gives_the_same_image(bicubic, tmp_path, make_photo, monkeypatch):  # noqa: F811
    monkeypatch.setattr(tile_sizes, "free_bytes", lambda device: 1)
    Image.fromarray(make_photo(1, 70, 90)).save("a.png")
    assert run(bicubic, "a.png", "b.png")
    nearly(pixels("b.png"), enlarged(make_photo(1, 70, 90)))


def test_tiles_become_smaller_until_they_fit():
    tried, notes = [], []

    def enlarge(tile):
        tried.append(tile)
        if tile is None or tile > 100:
            raise torch.OutOfMemoryError("no")
        return torch.zeros(1)

    assert with_smaller_tiles(enlarge, None, (900, 400), notes.append)[1] == 48
    assert tried == [None, 448, 224, 112, 48]  # halves, as multiples of 16
    assert len(notes) == len(tried) - 1 and notes[0] == "note: memory does not suffice; tiles of 448 pixels from here on"


def test_other_errors_pass_and_too_little_memory_is_one_line():
    def broken(tile):
        raise RuntimeError("shapes")

    def never(tile):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    with pytest.raises(RuntimeError, match="shapes"):
        with_smaller_tiles(broken, 64, (99, 99), print)
    with pytest.raises(UserError, match=r"^tile: even tiles of 32 pixels need more memory than is free"):
        with_smaller_tiles(never, 64, (99, 99), print)


@pytest.mark.slow
def test_two_ranks_share_the_images(folder, bicubic, tmp_path):  # noqa: F811
    """The second rank enlarges every second image; the first one says how many all have done, and the exit code is everyone's."""
    (tmp_path / "in" / "z.png").write_bytes(b"damaged")
    out, _ = processes.run(2, "sr_dist.upscale", bicubic, "in", "out", expect=1, cwd=tmp_path)
    assert "3 of 4 images enlarged by 2 with bicubic: out" in out and out.count("images enlarged") == 1
    assert written(tmp_path / "out") == ["a.jpg.png", "a.png.png", "deep/b.png"]
    (tmp_path / "in" / "z.png").unlink()
    out, _ = processes.run(2, "sr_dist.upscale", bicubic, "in", "out", cwd=tmp_path)
    assert "0 of 0 images" in out and "3 exist and were skipped" in out


def test_a_name_finds_weights_in_their_folder(bicubic, folder, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("SR_DIST_WEIGHTS", str(tmp_path / "weights"))
    assert run("bicubic", "in/a.png", "b.png") and run("bicubic.safetensors", "in/a.png", "c.png")
    with pytest.raises(UserError, match=r"^RUN_OR_WEIGHTS: no .* file 'bicubik', nor .*did you mean 'bicubic'"):
        run("bicubik", "in/a.png", "d.png")
