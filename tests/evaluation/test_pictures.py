"""Folders of pictures that were made elsewhere: matched by name, and scored as the run that made them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from photographs import made_photo
from PIL import Image
from safetensors.torch import save_file

from sr_dist.core.errors import UserError
from sr_dist.core.plugins import PACKAGES
from sr_dist.evaluation.contact_sheet import png
from sr_dist.evaluation.pictures import match
from sr_dist.evaluation.words import method_word, named_sets
from sr_dist.models import trained
from sr_dist.models.metadata import generator_metadata

SECTION = {"name": "srugan", "widths": [8, 8], "num_blocks": 1, "num_dense_blocks": 1, "reduction": 2}
OPTIONS = ["--scale=2", "--batch=2", "--metrics=psnr,ssim", "--cache=none"]
MIDDLE = "; smaller pictures are taken for the middle of HR"  # of a note


def tree(out: Path) -> dict:
    return json.loads((out / "report.json").read_text())


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    """A network with random weights, whose output leaves [0, 1]."""
    torch.manual_seed(0)
    network = trained.build(PACKAGES["generator"], SECTION, 2, "generator")
    path = tmp_path_factory.mktemp("network") / "mine.safetensors"
    save_file(network.state_dict(), path, generator_metadata(SECTION, 2))
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory, make_photo) -> Path:
    """Five images; two are of another size, one of an odd one, one grey."""
    folder = tmp_path_factory.mktemp("hr")
    for i in range(5):
        pixels = make_photo(i, 32 + i // 3 * 8, 41 if i == 4 else 40)
        Image.fromarray(pixels).convert("L" if i == 2 else "RGB").save(folder / f"bird_{i}.png")
    return folder


# ------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("images", "pictures", "ending"),
    [
        (["0801", "0802"], ["0801x4", "0802x4"], "x4"),
        (["0801", "0802"], ["0801_x4_SR", "0802_x4_SR"], "_x4_SR"),
        (["baby_HR", "bird_HR"], ["bird-out", "baby-out"], "-out"),
        (["img_001_SRF_4_HR"], ["img_001_SRF_4_SRCNN", "img_001_SRF_4_HR", "img_001_SRF_4_LR"], "_SRCNN"),
        (["a/x", "b/x"], ["a/x", "b/x"], ""),
        (["cats/01", "dogs/02"], ["01_SR", "02_SR"], "_SR"),
        (["bird", "bird_2"], ["bird_SR", "bird_2_SR"], "_SR"),
        (["Baby"], ["baby.exp"], ".exp"),
    ],
)
def test_pictures_are_named_as_the_images_and_an_ending(images, pictures, ending):
    result, numbers = match(images, pictures, "folder")
    assert result == ending
    names = [Path(pictures[number]).name.removesuffix(ending).lower() for number in numbers]
    assert names == [Path(name).name.removesuffix("_HR").lower() for name in images]


@given(
    st.lists(st.text("ab1_-x", min_size=1, max_size=5), min_size=1, max_size=6, unique=True),
    st.sampled_from(["", "_SR", "x4", "-out", "_x4_net"]), st.randoms(use_true_random=False),
)  # fmt: skip
def test_any_names_find_their_own_pictures(names, ending, random):
    """Whatever the names are, one picture for each with one ending is matched to its own image."""
    pictures = [f"{name}{ending}" for name in names]
    random.shuffle(pictures)
    _, numbers = match(names, pictures, "folder")
    assert [pictures[number] for number in numbers] == [f"{name}{ending}" for name in names]


@pytest.mark.parametrize(
    ("images", "pictures", "message"),
    [
        (["a", "b", "c"], ["a_SR", "c_SR"], "no picture in 'folder' for b (1 of 3 images)"),
        (["a", "b"], ["x", "y"], "no picture in 'folder' for a, b (2 of 2 images)"),
        (
            ["img_001", "img_002", "img_003", "img_004"],
            ["img_001_a", "img_002_b", "img_003_b"],
            "for img_001, img_004 (2 of 4 images) with the ending '_b', which most have; other endings there: '_a' (img_001)",
        ),
        (
            ["a", "b", "c"],
            ["a", "b", "c_SR"],
            "for c (1 of 3 images) without an ending, as most are named; other endings there: '_SR'",
        ),
        (
            ["img_001", "img_003"],
            ["img_001_a", "img_003_b"],
            "end in '_a' and '_b'; name a folder of one method, whose names all",
        ),
        (["a", "b"], ["a_SR", "b_SR", "a_GAN", "b_GAN"], "end in '_GAN' and '_SR'; name a folder of one method"),
        (["a"], ["a_SR", "a_SR"], "several pictures in 'folder' for a"),
        ([f"{i:02d}" for i in range(9)], ["none"], "for 00, 01, 02, 03, 04, ... (9 of 9 images)"),
    ],
)
def test_what_is_missing_or_ambiguous_is_named(images, pictures, message):
    with pytest.raises(UserError) as caught:
        match(images, pictures, "folder")
    assert message in str(caught.value)


def test_a_method_word_names_a_folder_unless_the_path_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1").mkdir()
    (tmp_path / "pictures").mkdir()
    word = method_word("theirs=pictures")
    assert (word.name, word.path, word.is_pictures) == ("theirs", "pictures", True)
    assert method_word("lr=1").name is None and method_word("bicubic").is_baseline
    for text in ("bicubic=pictures", ".x=pictures", "HR=pictures"):
        with pytest.raises(UserError, match="cannot be the name of a method"):
            method_word(text)


def test_sets_are_named_or_one():
    assert named_sets("/data/{0..3}.tar,x=1") == {"": "/data/{0..3}.tar,x=1"}
    assert named_sets("set5=/a,set14=/b{0,1}.tar") == {"set5": "/a", "set14": "/b{0,1}.tar"}
    for text in ("a=/x,a=/y", "a=/x,b="):
        with pytest.raises(UserError, match="data: "):
            named_sets(text)


# --------------------------------------------------------------------------------------------------------- evaluation


@pytest.fixture(scope="module")
def saved(network, images, tmp_path_factory, run_commands) -> Path:
    """The network's images and its report, from --save_images."""
    root = tmp_path_factory.mktemp("saved")
    words = [f"{network},bicubic", f"--data={images}", *OPTIONS, f"--out={root / 'out'}", f"--save_images={root / 'pictures'}"]
    (answer,) = run_commands([("sr_dist.evaluate", words)])
    assert answer.code == 0, answer.err
    return root


def test_a_folder_alone_has_its_own_name(saved, images, tmp_path, run_commands, monkeypatch):
    """Also beside another of that name. A baseline's word is the baseline where a folder is called so, too."""
    (tmp_path / "mine").symlink_to(saved / "pictures/bicubic")
    words = [f"{saved}/pictures/mine/,{tmp_path / 'mine'}", f"--data={images}", *OPTIONS, f"--out={tmp_path / 'out'}"]
    (answer,) = run_commands([("sr_dist.evaluate", words)])
    assert answer.code == 0, answer.err
    expected = tree(saved / "out")["methods"]
    assert tree(tmp_path / "out")["methods"] == {**expected, "mine (2)": expected["bicubic"]}
    monkeypatch.chdir(saved / "pictures")
    assert method_word("bicubic").is_baseline and not method_word("bicubic").is_pictures
    assert method_word("mine").is_pictures


def test_images_of_the_named_methods_are_saved_by_method_and_name(saved):
    names = [str(path.relative_to(saved / "pictures")) for path in sorted((saved / "pictures").rglob("*.png"))]
    assert names == [f"{method}/bird_{i}.png" for method in ("bicubic", "mine") for i in range(5)]
    assert Image.open(saved / "pictures/mine/bird_4.png").size == (40, 40)  # 41 is cropped to a multiple of the scale


def test_a_folder_of_pictures_scores_as_the_run_that_made_them(saved, images, network, tmp_path, run_commands):
    words = [f"{network},theirs={saved}/pictures/mine", f"--data={images}", *OPTIONS, f"--out={tmp_path / 'out'}"]
    (answer,) = run_commands([("sr_dist.evaluate", words)])
    assert answer.code == 0, answer.err
    report, first = tree(tmp_path / "out"), tree(saved / "out")
    assert report["methods"]["theirs"] == report["methods"]["mine"] == first["methods"]["mine"]
    source = report["sources"]["theirs"]
    assert source["pictures"] == f"{saved}/pictures/mine" and source["files"] == 5 and len(source["sha256"]) == 64
    assert report["differences"]["theirs - mine"]["psnr_y"] == {"mean": 0, "low": 0, "high": 0, "n": 5}
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"5 pictures in {saved}/pictures/mine" in page


def test_saved_images_are_completed_but_never_replaced(saved, images, network, tmp_path, run_commands):
    """The same command writes what is missing; other pictures in the place are refused by name."""
    words = [str(network), f"--data={images}", *OPTIONS, f"--out={tmp_path / 'out'}", f"--save_images={tmp_path / 'p'}"]
    (first,) = run_commands([("sr_dist.evaluate", words)])
    path = tmp_path / "p" / "mine" / "bird_1.png"
    original = path.read_bytes()
    path.unlink()
    (again,) = run_commands([("sr_dist.evaluate", words)])
    assert (first.code, again.code) == (0, 0) and path.read_bytes() == original
    Image.fromarray(np.zeros((32, 40, 3), np.uint8)).save(path)
    black = path.read_bytes()
    (refused,) = run_commands([("sr_dist.evaluate", words)])
    assert refused.code == 2 and f"'{path}' is another picture; name another folder" in refused.err
    assert path.read_bytes() == black


def resized(source: Path, target: Path, change) -> Path:
    target.mkdir()
    for path in sorted(source.glob("*.png")):
        Image.fromarray(change(np.array(Image.open(path).convert("RGB")))).save(target / path.name)
    return target


def test_wrong_sizes_are_refused_or_the_middle_is_compared(saved, images, tmp_path, run_commands):
    """Pictures without 3 pixels on every side, as of convolutions without padding: then HR and all methods lose them too."""
    small = resized(saved / "pictures/mine", tmp_path / "small", lambda x: x[3:-3, 3:-3])
    full = resized(images, tmp_path / "full", lambda x: x)  # as large as the stored HR, also where that is odd
    words = [f"small={small},full={full},whole={saved}/pictures/mine", f"--data={images}", *OPTIONS]
    refused, cropped = run_commands([
        ("sr_dist.evaluate", [*words, f"--out={tmp_path / 'a'}"]),
        ("sr_dist.evaluate", [*words, f"--out={tmp_path / 'b'}", "--border=crop"]),
    ])  # fmt: skip
    assert refused.code == 2 and not (tmp_path / "a").exists()
    assert "picture 34 x 26 and HR 40 x 32 of 'bird_0' differ in size; wrong sizes: small (5); --border=crop" in refused.err
    assert cropped.code == 0, cropped.err
    report = tree(tmp_path / "b")
    assert report["methods"]["small"] == report["methods"]["whole"]  # the same pixels are compared
    assert report["methods"]["full"]["psnr_rgb"] == 100  # HR itself
    assert report["methods"]["bicubic"] != tree(saved / "out")["methods"]["bicubic"]
    note = "5 of 5 images compared in the part that all pictures have: 3 pixels cut on every side of all methods"
    assert note + MIDDLE in report["notes"]
    assert report["inputs"]["images"] != tree(saved / "out")["inputs"]["images"]


@pytest.fixture(scope="module")
def sides(tmp_path_factory, make_photo):
    """`sides(131, 103)` -> a folder of two HR images of this width and height."""

    def make(width: int, height: int) -> Path:
        folder = tmp_path_factory.mktemp(f"hr{width}x{height}")
        for i in range(2):
            Image.fromarray(make_photo(i, height, width)).save(folder / f"{i}.png")
        return folder

    return make


def test_pictures_that_are_the_middle_of_hr_before_or_after_it_was_cropped_are_laid_on_it(sides, tmp_path, run_commands):
    """Of 131 x 103 pixels, 128 x 100 are compared at x4. HR itself scores 100 dB wherever it lies; a pixel beside, 20 to 30."""
    hr = sides(131, 103)
    kinds = {
        "stored": resized(hr, tmp_path / "stored", lambda x: x[2:-2, 2:-2]),  # 127 x 99
        "cropped": resized(hr, tmp_path / "cropped", lambda x: x[:100, :128][3:-3, 3:-3]),  # 122 x 94
        "whole": resized(hr, tmp_path / "whole", lambda x: x),
    }
    words = [f"--data={hr}", "--scale=4", "--metrics=psnr", "--cache=none", "--border=crop"]
    one, other, both = run_commands([
        ("sr_dist.evaluate", [",".join(f"{name}={kinds[name]}" for name in names), *words, f"--out={tmp_path / names[0]}"])
        for names in (["stored"], ["cropped"], ["whole", "cropped", "stored"])
    ])  # fmt: skip
    assert (one.code, other.code, both.code) == (0, 0, 0), one.err + other.err + both.err
    for out in kinds:
        methods = tree(tmp_path / out)["methods"]
        assert all(methods[name]["psnr_rgb"] == 100 for name in kinds if name in methods), (out, methods)
    part = "2 of 2 images compared in the part that all pictures have: "
    assert f"{part}0 to 2 pixels cut on a side of all methods{MIDDLE}" in tree(tmp_path / "stored")["notes"]
    assert f"{part}3 pixels cut on every side of all methods{MIDDLE}" in tree(tmp_path / "whole")["notes"]


def test_pictures_whose_place_in_hr_is_not_known_are_refused(sides, tmp_path, run_commands):
    """130 x 102 less 6 is 124 x 96: the middle of HR, or that of 128 x 100."""
    hr, odd = sides(130, 102), sides(132, 104)
    cases = [
        (
            hr,
            lambda x: x[3:-3, 3:-3],
            "may be the middle of HR before or after that was cropped to a multiple of 4; crop the images",
        ),
        (odd, lambda x: x[:-5, :-5], "it does not lack as many pixels on one side as on every other"),
        (odd, lambda x: x[:, 2:-2], "it does not lack as many pixels on one side as on every other"),
        (hr, lambda x: np.pad(x, ((0, 2), (0, 2), (0, 0))), "it is larger than HR"),
    ]
    calls = []
    for number, (data, change, _) in enumerate(cases):
        pictures = resized(data, tmp_path / str(number), change)
        calls += [("sr_dist.evaluate", [f"x={pictures}", f"--data={data}", "--scale=4", f"--out={tmp_path / 'o'}", *crop])
                  for crop in ([], ["--border=crop"])]  # fmt: skip
    answers = run_commands(calls)
    for number, answer in enumerate(answers):
        assert answer.code == 2 and answer.err.count("\n") == 1, answer
        assert "it cannot be laid on HR: " in answer.err and cases[number // 2][2] in answer.err, answer.err
        assert "--border=crop" not in answer.err
    assert "picture 124 x 96 and HR 130 x 102 (cropped: 128 x 100) of '0' differ in size; wrong sizes: x (2)" in answers[0].err


def test_pictures_that_lack_more_than_a_border_are_refused(sides, tmp_path, run_commands):
    """The middle of HR scores better than the whole, so pictures of LR's size would raise all methods. At x4 a border has at most
    20 pixels; of 80, fewer than an eighth, since 60 x 60 may be x3."""
    wide, square = sides(264, 208), sides(80, 80)
    cases = [
        (wide, lambda x: x[::4, ::4], "this is the size of LR"),
        (square, lambda x: x[::4, ::4], "this is the size of LR"),
        (wide, lambda x: x[21:-21, 21:-21], "it lacks 21 pixels on every side; a border has at most 20 of such images"),
        (square, lambda x: x[10:-10, 10:-10], "it lacks 10 pixels on every side; a border has at most 9 of such images"),
        (wide, lambda x: x[20:-20, 20:-20], ""),
    ]
    calls = []
    for number, (data, change, _) in enumerate(cases):
        pictures = resized(data, tmp_path / str(number), change)
        words = [f"x={pictures}", f"--data={data}", "--scale=4", "--metrics=psnr", f"--out={tmp_path / f'o{number}'}"]
        calls += [("sr_dist.evaluate", [*words, *crop]) for crop in ([], ["--border=crop"])]
    *refused, advised, accepted = run_commands(calls)
    for number, answer in enumerate(refused):
        message = f"; it cannot be laid on HR: {cases[number // 2][2]}\n"
        assert answer.code == 2 and answer.err.endswith(message), answer.err
    assert advised.code == 2 and "; --border=crop compares the part that all have" in advised.err
    assert accepted.code == 0 and tree(tmp_path / "o4")["methods"]["x"]["psnr_rgb"] == 100
    assert any("20 pixels cut on every side" in note for note in tree(tmp_path / "o4")["notes"])


def test_pictures_of_other_formats_and_extra_ones_are_noted(saved, images, tmp_path, run_commands):
    folder = tmp_path / "jpeg"
    folder.mkdir()
    for path in sorted((saved / "pictures/mine").glob("*.png")):
        Image.open(path).save(folder / f"{path.stem}_x2.JPG", format="JPEG", quality=90)
    (folder / "other.png").write_bytes((saved / "pictures/mine/bird_0.png").read_bytes())
    (answer,) = run_commands([("sr_dist.evaluate", [f"j={folder}", f"--data={images}", *OPTIONS, f"--out={tmp_path / 'o'}"])])
    assert answer.code == 0, answer.err
    report = tree(tmp_path / "o")
    assert report["sources"]["j"]["ending"] == "_x2"
    assert "5 of 5 pictures of j stored as JPEG, which changes pixels" in report["notes"]
    assert "1 picture of j without an image: other" in report["notes"]


def test_pictures_that_are_read_otherwise_than_they_are_stored_are_counted(saved, tmp_path, run_commands, make_photo):
    """Grey beside grey HR is as it should be; so is a WebP that says it is lossless. Formats are those of the content."""
    hr, folder, one = tmp_path / "hr", tmp_path / "kinds", tmp_path / "one"
    for place in (hr, folder, one):
        place.mkdir()
    for i in range(6):
        image = Image.fromarray(make_photo(i, 32, 40)).convert("L" if i == 2 else "RGB")
        image.save(hr / f"{i}.png")
        (image if i else image.convert("L")).save(folder / f"{i}.png", format="JPEG" if i == 0 else "PNG")
    image.save(one / "5.png")
    Image.open(hr / "1.png").convert("RGBA").save(folder / "1.png")
    deep = np.array(Image.open(hr / "2.png")).astype(np.uint16) * 257
    Image.fromarray(deep).save(folder / "2.png")
    for i, lossless in ((3, True), (4, False)):
        Image.open(hr / f"{i}.png").save(folder / f"{i}.webp", lossless=lossless)
        (folder / f"{i}.png").unlink()
    words = ["--scale=2", "--metrics=psnr", "--cache=none"]
    many, single = run_commands([
        ("sr_dist.evaluate", [f"x={folder}", f"--data={hr}", *words, f"--out={tmp_path / 'o'}"]),
        ("sr_dist.evaluate", [f"x={one}", f"--data={one}", *words, f"--out={tmp_path / 'p'}"]),
    ])  # fmt: skip
    assert (many.code, single.code) == (0, 0), many.err + single.err
    assert [note for note in tree(tmp_path / "o")["notes"] if " of x " in note] == [
        f"1 of 6 pictures of x {words}" for words in (
            "stored as JPEG, which changes pixels", "stored as WebP, which may change pixels",
            "stored grey beside images in colour", "without their transparency", "of 16 bits, read as 8",
        )
    ]  # fmt: skip
    page = (tmp_path / "p" / "report.html").read_text()
    assert "x on 1 image</h1>" in page and f"1 picture in {one}" in page and "x2, 1 image of" in page


def test_mistakes_in_words_are_one_line(saved, images, network, run_commands):
    data = f"--data={images}"
    mistakes = [
        ([f"x={saved}/none", data, *OPTIONS], "METHOD: x: nothing is at "),
        ([f"x={saved}/pictures/mine,x={saved}/pictures/bicubic", data, *OPTIONS], "gives a name twice"),
        ([f"x={saved}/pictures/mine", data, "--metrics=psnr"], "scale: no METHOD has a scale of its own"),
        ([f"x={saved}/out", data, *OPTIONS], "METHOD: no pictures in "),
        ([str(network), data, *OPTIONS, "--against=bicubik"], "against: no method 'bicubik'; did you mean 'bicubic'"),
        ([str(network), data, *OPTIONS, "--border=none"], "border: "),
        ([str(network), data, "--metrics=psnr,dists,niqe"], "; a metric of the package pyiqa is named pyiqa:dists, pyiqa:niqe"),
        ([str(network), data, "--metrics=pnsr,niqe"], "evaluation/metrics; did you mean 'psnr'?\n"),
        ([str(network), data, *OPTIONS, f"--save_images={network}"], "save_images: "),
        ([str(network), *OPTIONS], "data: this key is missing; name"),
        ([str(network), "--data=a=nowhere,b=x", *OPTIONS], "data: a: no folder 'nowhere'"),
        ([str(network), data, "--lr=a=/tmp", *OPTIONS], "lr: --data names one set; --lr names a"),
    ]
    answers = run_commands([("sr_dist.evaluate", words) for words, _ in mistakes])
    for (words, message), answer in zip(mistakes, answers, strict=True):
        assert answer.code == 2 and answer.err.count("\n") == 1 and message in answer.err, (words, answer.err)


@pytest.mark.parametrize("side", [1, 96])
def test_a_png_has_every_pixel_and_is_as_small_as_pillows(side):
    image = Image.fromarray(made_photo(3, side, 2 * side))
    content, usual = png(image), io.BytesIO()
    image.save(usual, format="PNG")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), np.asarray(image))
    assert len(content) <= 1.1 * len(usual.getvalue())
