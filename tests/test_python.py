"""`import sr_dist`: the examples of docs/python.md, the kinds of images, and what the import costs."""

from __future__ import annotations

import doctest
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

import sr_dist
from sr_dist.core.colour import luma
from sr_dist.core.errors import UserError
from sr_dist.core.plugins import PACKAGES
from sr_dist.core.resize import imresize
from sr_dist.models import trained
from sr_dist.models.metadata import generator_metadata

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
SECTION = {"name": "srugan", "widths": [4, 4], "num_blocks": 1, "num_dense_blocks": 1, "reduction": 2, "skip": "bicubic"}


@pytest.fixture(scope="module")
def place(tmp_path_factory, photo_shards, make_photo):
    """A folder with a run whose network is bicubic interpolation x2, two photographs, a set and shards."""
    root = tmp_path_factory.mktemp("python")
    checkpoint = root / "runs" / "x" / "checkpoints" / "0000100"
    checkpoint.mkdir(parents=True)
    (root / "runs" / "x" / "recipe.yaml").write_text("name: x\n")
    section = trained.complete(SECTION, "generator")
    network = trained.build(PACKAGES["generator"], section, 2, "generator")
    save_file(network.state_dict(), checkpoint / "generator.ema.safetensors", generator_metadata(section, 2))
    Image.fromarray(make_photo(1, 32, 48)).save(root / "photo.png")
    Image.fromarray(make_photo(2, 32, 48)[..., 0]).save(root / "grey.png")
    (root / "data" / "photos").mkdir(parents=True)
    for number in (1, 2):
        Image.fromarray(make_photo(number, 32, 48)).save(root / "data" / "photos" / f"{number}.png")
    (root / "data" / "mine").symlink_to(photo_shards)
    return root


@pytest.fixture(scope="module")
def sr(place):
    return sr_dist.load(place / "runs" / "x", device="cpu")


@pytest.mark.slow
def test_the_examples_of_the_page_give_what_it_says(place, monkeypatch):
    monkeypatch.chdir(place)
    text = re.sub(r"^```.*$", "", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    test = doctest.DocTestParser().get_doctest(text, {}, "python.md", str(PAGE), 0)
    assert len(test.examples) > 15
    failures: list[str] = []
    doctest.DocTestRunner().run(test, out=failures.append)
    assert not failures, "".join(failures)


def test_the_import_loads_nothing_heavy_and_each_name_what_it_needs(place):
    """The module of the command `evaluate` is also the function, in whatever order they are imported."""
    code = """
import json, sys
import sr_dist
heavy = [name for name in ("torch", "PIL", "numpy", "pydantic") if name in sys.modules]
dir(sr_dist)
import sr_dist.evaluate
from sr_dist import evaluate
same = evaluate is sr_dist.evaluate
print(json.dumps([heavy, "torch" in sys.modules, callable(evaluate), same, evaluate.Evaluate.__name__]))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PAGE.parents[1]).stdout
    assert json.loads(out) == [[], False, True, True, "Evaluate"]
    with pytest.raises(AttributeError, match=r"no attribute 'laod'; it has .*load"):
        sr_dist.laod  # noqa: B018


GROUP = """
import sys, torch, torch.distributed as dist
import sr_dist
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}/group", rank=0, world_size=1)
def settings():
    cudnn = torch.backends.cudnn
    return cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, torch.get_float32_matmul_precision()
torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = True
torch.set_float32_matmul_precision("high")
before = settings()
for more in ({"metrics": "psnr"}, {"find": "28.42"}):
    sr_dist.evaluate("nearest", data=sys.argv[1], scale=2, limit=1, cache="none", out=sys.argv[2] + "/out", **more)
    assert settings() == before == (True, False, True, "high"), settings()
    assert dist.is_initialized()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_the_function_leaves_the_callers_process_group_and_settings(place, tmp_path):
    code = [sys.executable, "-c", GROUP, str(place / "data" / "photos"), str(tmp_path)]
    done = subprocess.run(code, capture_output=True, text=True, cwd=PAGE.parents[1])
    assert done.returncode == 0, done.stderr[-3000:]


# ---- kinds of images


def bicubic(planes):
    return imresize(planes, 2).clamp(0, 1)


@given(
    form=st.sampled_from(["HW", "HWC", "BHWC"]), channels=st.integers(1, 4), kind=st.sampled_from(["u1", "u2", "f2", "f4", "f8"]),
    size=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=25)
def test_arrays_return_with_their_form_and_type(sr, form, channels, kind, size, seed):
    dtype = np.dtype(kind)
    top = {"u1": 255, "u2": 65535}.get(kind, 1)
    shape = {"HW": size[1:], "HWC": (*size[1:], channels), "BHWC": (*size, channels)}[form]
    values = np.random.default_rng(seed).random(shape)
    array = (values * top).astype(dtype)
    actual = sr(array)
    assert actual.dtype == dtype and actual.shape == {
        "HW": (2 * size[1], 2 * size[2]), "HWC": (2 * size[1], 2 * size[2], channels),
        "BHWC": (size[0], 2 * size[1], 2 * size[2], channels),
    }[form]  # fmt: skip
    planes = torch.from_numpy(array.astype(np.float64) / top)
    planes = planes if form == "HW" else planes.movedim(-1, -3)
    expected = bicubic(planes) if form == "HW" else bicubic(planes).movedim(-3, -1)
    assert np.abs(actual.astype(np.float64) / top - expected.numpy()).max() <= (0.51 / top if top > 1 else 2e-3) + 2e-5


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(5, 4), (1, 5, 4), (3, 5, 4), (4, 5, 4), (2, 3, 5, 4)])
def test_tensors_return_with_their_form_and_type(sr, shape, dtype):
    torch.manual_seed(0)
    values = torch.rand(shape, dtype=torch.float64)
    tensor = (values * 255).to(dtype) if dtype == torch.uint8 else values.to(dtype)
    actual = sr(tensor)
    top = 255 if dtype == torch.uint8 else 1
    assert actual.dtype == dtype and actual.shape == (*shape[:-2], 10, 8) and not actual.requires_grad
    torch.testing.assert_close(
        actual.double() / top, bicubic(tensor.double() / top), atol=0.51 / top if top > 1 else 1e-3, rtol=0
    )


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P", "CMYK", "I;16"])
def test_pil_images_return_in_their_mode(sr, mode, make_photo):
    photo = Image.fromarray(make_photo(3, 8, 6))
    image = Image.fromarray(np.full((8, 6), 40_000, np.uint16)) if mode == "I;16" else photo.convert(mode)
    image.info["icc_profile"] = b"0" * 16 + b"RGB " + b"0" * 108
    large = sr(image)
    assert isinstance(large, Image.Image) and large.size == (12, 16)
    assert large.mode == {"P": "RGB"}.get(mode, mode) and large.info["icc_profile"] == image.info["icc_profile"]
    if mode == "I;16":
        assert set(np.asarray(large).ravel()) == {40_000}


def test_pixels_in_memory_are_not_turned_and_those_of_a_file_are(sr, place, make_photo):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(make_photo(1, 10, 6)).save(place / "turned.jpg", exif=exif)
    with Image.open(place / "turned.jpg") as image:
        large = sr(image)
    assert large.size == (12, 20) and large.getexif()[0x0112] == 6
    assert sr(place / "turned.jpg").size == (20, 12) and sr(str(place / "turned.jpg")).size == (20, 12)


def test_a_path_can_become_a_file(sr, place):
    result = sr(place / "photo.png", out=place / "new" / "b.png")
    assert result == place / "new" / "b.png"
    with Image.open(result) as image:
        assert np.array_equal(np.asarray(image), np.asarray(sr(place / "photo.png")))


def test_a_file_that_exists_is_replaced_on_request_only_and_the_image_itself_never(sr, place, tmp_path):
    source, other, link = tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png"
    source.write_bytes((place / "photo.png").read_bytes())
    other.write_bytes(b"mine")
    link.symlink_to(source)
    before = source.read_bytes()
    for out, overwrite in ((source, False), (source, True), (link, True), (tmp_path / "x" / ".." / "a.png", True)):
        (tmp_path / "x").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=r"^out: '.*' is the image that is read; name another file$"):
            sr(str(source), out=str(out), overwrite=overwrite)
    with pytest.raises(UserError, match=r"^out: '.*b\.png' would be overwritten; say overwrite=True, or name another file$"):
        sr(source, out=other)
    assert source.read_bytes() == before and other.read_bytes() == b"mine"
    assert sr(source, out=other, overwrite=True) == other
    with Image.open(other) as image:
        assert image.size == (96, 64)


@pytest.mark.parametrize(
    ("image", "out", "message"),
    [
        (np.zeros((8, 8, 4), np.uint8), "x.jpg", r"^out: '.*x\.jpg': it has an alpha channel, which JPEG does not hold; PNG, "),
        (np.zeros((8, 8), np.uint8), "", r"^out: '.*' is a folder; name a file, such as '.*large\.png'$"),
        ("no.png", "x.gif", r"^out: '.*x\.gif' has no suffix of an image \(\.jpg, "),
    ],
)
def test_an_out_that_cannot_be_is_one_line_that_names_it(sr, image, out, message, tmp_path):
    with pytest.raises(UserError, match=message):
        sr(image, out=tmp_path / out)


@pytest.mark.parametrize("kind", [np.asarray, lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255])
def test_pixels_in_memory_can_become_a_file(sr, place, kind):
    with Image.open(place / "photo.png") as photo:
        result = sr(kind(photo), out=place / "memory.png", overwrite=True)
    with Image.open(result) as image:
        assert np.array_equal(np.asarray(image), np.asarray(sr(place / "photo.png")))
    with pytest.raises(UserError, match=r"^out: '.*many.png' is one file, and these are 2 images; call without out="):
        sr(torch.rand(2, 3, 6, 6), out=place / "many.png")


def test_a_grey_image_is_the_luma_of_the_colour_network(place, sr):
    grey = torch.rand(1, 6, 6)
    torch.testing.assert_close(sr(grey), luma(bicubic(grey[None].expand(-1, 3, -1, -1)))[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            np.zeros((3, 8, 8), np.uint8),
            r"image: an ndarray: the array has the shape \(3, 8, 8\); images are \(H, W\), ",
        ),
        (np.zeros((8, 8), np.int32), "pixels of int32 have no known white level"),
        (torch.zeros(8, 8, 3), r"the tensor has the shape \(8, 8, 3\); images are \(H, W\), \(C, H, W\)"),
        (np.zeros((0, 8, 3), np.uint8), "has the shape"),
        (7, "an int: not an image; give a path, a PIL image"),
        (Image.new("F", (8, 8)), "^image: an Image: floating-point images have no known white level"),
        (
            np.full((8, 8, 3), 255.0),
            r"^image: an ndarray: real numbers are in \[0, 1\], and its largest is 255; divide by 255, or",
        ),
        (torch.full((3, 8, 8), 60000.0), r"^image: a Tensor: real numbers .* largest is 60000; divide by 65535"),
        (np.full((8, 8), np.nan), r"^image: an ndarray: some of its pixels are not finite \(NaN or infinite\)$"),
        (torch.full((1, 8, 8), torch.inf), r"^image: a Tensor: some of its pixels are not finite"),
        ("no.png", "image: 'no.png': .*No such file"),
    ],
)
def test_what_is_no_image_is_one_line(sr, image, message):
    with pytest.raises(UserError, match=message):
        sr(image)


@pytest.mark.parametrize("kind", [">u2", ">f4"])
def test_the_byte_order_of_an_array_changes_nothing(sr, kind):
    plain = (np.random.default_rng(0).random((6, 5, 3)) * (65535 if kind == ">u2" else 1)).astype(kind[1:])
    actual = sr(plain.astype(kind))
    assert actual.dtype == np.dtype(kind) and np.array_equal(actual, sr(plain))


def test_real_numbers_a_little_above_one_are_clipped(sr):
    assert float(sr(torch.full((1, 6, 6), 1.2)).max()) == 1.0


def test_options_are_checked(sr, place):
    with pytest.raises(UserError, match=r"^tile: 0; it is a number of pixels"):
        sr(place / "photo.png", tile=0)
    with pytest.raises(UserError, match=r"^device: 'cuda:9' does not exist on this machine"):
        sr_dist.load(place / "runs" / "x", device="cuda:9")
    with pytest.raises(UserError, match=r"^source: no run folder or weights file '.*runs/xx'.*did you mean '.*runs/x'"):
        sr_dist.load(place / "runs" / "xx")
    with pytest.raises(UserError, match=r"^out: 'b.png' is one file, and these are 2 images"):
        sr(["a.png", "b.png"], out="b.png")
    with pytest.raises(UserError, match=r"^protokol: unknown key; did you mean 'protocol'"):
        sr_dist.evaluate("bicubic", data="x", protokol="rgb-float")
    with pytest.raises(UserError, match=r"^metric: psnr is for the numbers of find; metrics names what is measured$"):
        sr_dist.evaluate("bicubic", data=place / "data" / "photos", scale=2, metric=["psnr"])
    with pytest.raises(UserError, match=r"^methods: no run folder or weights file "):
        sr_dist.evaluate(place / "nothing", data=place / "data" / "photos", metrics=["psnr"])


def test_tiles_give_the_same_image(sr, make_photo):
    photo = make_photo(4, 40, 50)
    assert np.abs(sr(photo, tile=16).astype(int) - sr(photo, tile=None)).max() <= 1
    assert sr.tile == "auto"  # a call changes only itself


# ---- data


@pytest.mark.parametrize(("workers", "channels"), [(0, 3), (2, 3), (0, 1)])
def test_batches_are_those_of_the_training_reader_and_have_no_end(place, workers, channels):
    """24 samples: three batches of eight are one epoch, and a fourth begins the next. The number of workers changes nothing."""
    batches = sr_dist.Shards(place / "data" / "mine").batches(crop=16, batch=8, workers=workers, seed=3, channels=channels)
    first = [next(batches) for _ in range(5)]
    batches.close()
    assert all(batch.shape == (8, channels, 16, 16) and batch.dtype == torch.uint8 and batch.is_contiguous() for batch in first)
    again = sr_dist.Shards(place / "data" / "mine").batches(crop=16, batch=8, workers=0, seed=3, channels=channels)
    assert all(torch.equal(batch, next(again)) for batch in first)  # no batch was overwritten by a later one
    other = next(sr_dist.Shards(place / "data" / "mine").batches(crop=16, batch=8, workers=0, seed=4, channels=channels))
    assert not torch.equal(other, first[0])


def test_batches_refuse_what_training_refuses(place):
    shards = sr_dist.Shards(str(place / "data" / "mine"))
    with pytest.raises(
        UserError, match=r"^crop: 64 is more than the smallest side of .*, 32; 32 fits, and small=replicate repeats"
    ):
        shards.batches(crop=64)
    assert next(shards.batches(crop=64, batch=2, workers=0, small="replicate")).shape == (2, 3, 64, 64)
    with pytest.raises(UserError, match=r"^wrokers: unknown key; did you mean 'workers'"):
        shards.batches(crop=16, wrokers=2)
    with pytest.raises(UserError, match=r"^path: "):
        sr_dist.Shards(place / "nothing")


@pytest.mark.parametrize(
    ("key", "value"),
    [("flip", False), ("rotate", True), ("degradation", "bicubic"), ("augment", {"noise": 0.1}), ("validation", "data/mine"),
     ("cache", "elsewhere"), ("train", "data/other"), ("trace", True)],
)  # fmt: skip
def test_batches_refuse_keys_of_a_recipe_that_would_change_nothing(place, key, value):
    with pytest.raises(UserError, match=rf"^{key}: changes nothing here; .* small, on_corrupt, select, balance, split, window$"):
        sr_dist.Shards(place / "data" / "mine").batches(crop=16, **{key: value})


@pytest.mark.parametrize("channels", [5, 0, "3"])
def test_batches_have_one_or_three_channels(place, channels):
    with pytest.raises(UserError, match=rf"^channels: {channels!r}; it is 3, or 1 for grey"):
        sr_dist.Shards(place / "data" / "mine").batches(crop=16, channels=channels)


def test_batches_have_crops_of_one_size(place):
    with pytest.raises(UserError, match=r"^crop: None; batches have crops of one size"):
        sr_dist.Shards(place / "data" / "mine").batches(crop=None)


@pytest.mark.parametrize(("key", "value"), [("select", {"boats": 4, "rest": 4}), ("split", [0.5, 0.5]), ("window", 1)])
def test_keys_that_batches_take_change_them(place, key, value):
    shards = sr_dist.Shards(place / "data" / "mine")
    plain, changed = (shards.batches(crop=16, batch=8, workers=0, **more) for more in ({}, {key: value}))
    assert not torch.equal(next(plain), next(changed))
