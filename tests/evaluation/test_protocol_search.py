"""The search for the protocol of a published number: its values beside other libraries', and what it says of numbers that are
known to be of one protocol, of none, or of several."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scoring import batches
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure

from sr_dist.core import progress
from sr_dist.evaluation import protocol_search, protocol_values, resizers
from sr_dist.evaluation.baselines import baseline
from sr_dist.evaluation.conditions import AXES, NAMED, PSNR_AXES, SHARED, SSIM_AXES, borders, known_as, statement
from sr_dist.evaluation.metrics import psnr, ssim
from sr_dist.evaluation.protocol import protocol
from sr_dist.evaluation.protocol_search import Candidate, Number, agreeing, all_candidates, answer, as_tree, described, merged
from sr_dist.evaluation.protocol_values import Target, pixel_forms, psnr_errors, psnr_of_set, ssim_values
from sr_dist.evaluation.report import folders


@pytest.fixture(scope="module")
def pair(make_photo):
    """HR of 8 bits, and something near it that leaves [0, 1]: (3, 40, 48) float64."""
    hr = torch.from_numpy(make_photo(3, 40, 48)).permute(2, 0, 1).double() / 255
    noise = torch.randn(hr.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return hr * 1.1 - 0.03 + 0.04 * noise, hr


def similarities(sr, hr, grey=False):
    return dict(ssim_values(pixel_forms(sr), Target(hr, borders(2), grey)))


def psnr_values(pairs, scale=2, grey=False):
    errors = [dict(psnr_errors(pixel_forms(sr), Target(hr, borders(scale), grey))) for sr, hr in pairs]
    return {
        tuple(conditions[axis] for axis in PSNR_AXES[2:]): value
        for key in errors[0] for conditions, value in psnr_of_set(("given", "network", *key), [one[key] for one in errors])
    }  # fmt: skip


PRESETS = [("matlab-y", "y_rounded", "rounded", "2"), ("basicsr", "y", "rounded", "2"), ("rgb-float", "y", "floats", "0")]


@pytest.mark.parametrize(("preset", "luma", "pixels", "border"), PRESETS)
@pytest.mark.parametrize("grey", [False, True])
def test_the_protocols_of_evaluations_are_among_the_combinations(pair, preset, luma, pixels, border, grey):
    sr, hr = pair
    if grey:
        sr, hr = (image[:1].expand(3, -1, -1) for image in pair)
    rules = protocol(preset, 2)
    own = {key: value[0] for metric in (psnr, ssim) for key, value in metric.per_image(sr[None], hr[None], rules, grey).items()}
    values, similar = psnr_values([(sr, hr)], grey=grey), similarities(sr, hr, grey)
    for name, channel in (("y", luma), ("rgb", "rgb")):
        assert values[pixels, channel, border, "255", "images"] == pytest.approx(own[f"psnr_{name}"], abs=5e-6)
        assert similar[pixels, channel, border, "gaussian", "population", "255"] == pytest.approx(own[f"ssim_{name}"], abs=1e-9)


def test_ssim_is_that_of_scikit_image_and_torchmetrics(pair):
    sr, hr = pair
    values = similarities(sr, hr)
    x, y = ((image.clamp(0, 1) * 255).permute(1, 2, 0).numpy() for image in pair)
    theirs = structural_similarity(x, y, channel_axis=2, data_range=255)
    assert values["floats", "rgb", "0", "uniform7", "sample", "255"] == pytest.approx(theirs, abs=1e-9)
    theirs = structural_similarity(x, y, channel_axis=2, data_range=255, gaussian_weights=True, sigma=1.5)
    assert values["floats", "rgb", "0", "gaussian", "sample", "255"] == pytest.approx(theirs, abs=1e-9)
    theirs = structural_similarity_index_measure(sr[None].clamp(0, 1), hr[None], data_range=1.0)
    assert values["floats", "rgb", "0", "gaussian_reflect", "population", "255"] == pytest.approx(float(theirs), abs=1e-6)
    theirs = structural_similarity_index_measure(sr[None], hr[None])  # its default range is that of the pair
    value = values["unclipped", "rgb", "0", "gaussian_reflect", "population", "pair_range"]
    assert value == pytest.approx(float(theirs), abs=1e-6)


def test_one_hr_serves_several_sr(pair, monkeypatch):
    """What is stored of HR, or computed again because it takes too much memory, changes no bit."""
    sr, hr = pair
    shared = Target(hr, borders(2), False)
    for one in (sr, sr.flip(2), sr * 0.9):
        expected = similarities(one, hr), dict(psnr_errors(pixel_forms(one), Target(hr, borders(2), False)))
        assert (dict(ssim_values(pixel_forms(one), shared)), dict(psnr_errors(pixel_forms(one), shared))) == expected
    monkeypatch.setattr(protocol_values, "MOST_BYTES", 2**16)
    assert similarities(sr * 0.9, hr) == expected[0]


def test_psnr_has_every_mean_and_range(pair, make_photo):
    """Two images of different size, worked out with numpy."""
    small = torch.from_numpy(make_photo(5, 24, 30)).permute(2, 0, 1).double() / 255
    pairs = [pair, (small * 0.9, small)]
    values = psnr_values(pairs)
    squares = [((sr.clamp(0, 1) - hr).numpy() * 255) ** 2 for sr, hr in pairs]
    mse = [square.mean() for square in squares]
    own = [10 * math.log10(255**2 / one) for one in mse]
    pooled = np.concatenate([square.ravel() for square in squares]).mean()
    planes = [(one, other) for sr, hr in pairs for one, other in zip(hr.numpy(), sr.clamp(0, 1).numpy(), strict=True)]
    each = [peak_signal_noise_ratio(one, other, data_range=1) for one, other in planes]
    highest = [float(hr.max()) for _, hr in pairs]
    assert values["floats", "rgb", "0", "255", "images"] == pytest.approx(np.mean(own))
    assert values["floats", "rgb", "0", "255", "mse"] == pytest.approx(10 * math.log10(255**2 / np.mean(mse)))
    assert values["floats", "rgb", "0", "255", "pooled"] == pytest.approx(10 * math.log10(255**2 / pooled))
    assert values["floats", "channels", "0", "255", "images"] == pytest.approx(np.mean(each))
    expected = np.mean([value + 20 * math.log10(peak) for value, peak in zip(own, highest, strict=True)])
    assert values["floats", "rgb", "0", "hr_max", "images"] == pytest.approx(expected)
    studio = values["floats", "y", "0", "219", "images"] - values["floats", "y", "0", "255", "images"]
    assert studio == pytest.approx(20 * math.log10(219 / 255))
    assert values["floats", "y_full", "0", "255", "images"] == pytest.approx(values["floats", "y", "0", "219", "images"])


def test_a_published_number_fixes_its_last_digit():
    for text, value, expected in (("28.42", 28.4249, True), ("28.420", 28.4249, False), ("0.81", 0.8049, False)):
        assert Number("psnr", text).is_reproduced(value) == expected, (text, value)


def conditions(**changes):
    usual = {"lr": "stored", "enlarged": "network", "pixels": "rounded", "channel": "y_rounded", "border": "4", "range": "255"}
    return {**usual, "mean": "images", **changes}


def test_the_answer_says_what_reproduces_what_is_near_and_what_is_none():
    candidates = [
        Candidate(conditions(), 28.4249), Candidate(conditions(channel="rgb"), 27.1), Candidate(conditions(border="0"), 28.43),
        Candidate(conditions(lr="matlab"), 28.4151),
    ]  # fmt: skip
    text = described("bicubic", [answer(Number("psnr", "28.42"), candidates, 4)], 4)
    assert "PSNR 28.42: reproduced by 2 combinations" in text
    assert "| 28.4151 to 28.4249 | stored or matlab | rounded | y_rounded | 4 | 255 | images | MATLAB tables" in text
    assert "To state it: PSNR: LR as stored with the data; 8-bit images; Y of BT.601 in studio range (16 to 235), rounded" in text
    assert "a border of 4 pixels removed; data range 255; mean of per-image values." in text
    joined = [
        Candidate(conditions(border=border, pixels=pixels), 28.42) for border in ("4", "0") for pixels in ("rounded", "floats")
    ]
    text = described("bicubic", [answer(Number("psnr", "28.42"), joined, 4)], 4)
    assert (
        "| rounded or floats | y_rounded | 4 or 0 | 255 | images | among them MATLAB tables (SRCNN, SelfExSR, EDSR) with " in text
    )
    assert "with pixels rounded, border 4, KAIR, Y of 8-bit images with pixels rounded, border 4 |" in text
    text = described("bicubic", [answer(Number("psnr", "28.44"), candidates, 4)], 4)
    assert "28.44: none" in text and "Within 0.02 of it:" in text and "| 28.4300 | stored | rounded | y_rounded | 0 |" in text
    text = described("bicubic", [answer(Number("psnr", "31.5000"), candidates, 4)], 4)
    assert "31.5000: none" in text and "Nothing is within 0.02 of it" in text and "To state it" not in text


def test_two_numbers_of_one_table_have_their_conditions_in_common():
    own = {"window": "gaussian", "covariance": "population"}

    def similar(**changes):
        values = {**conditions(**changes), **own}
        return {axis: values[axis] for axis in SSIM_AXES}

    first = answer(Number("psnr", "28.42"), [Candidate(conditions(), 28.42), Candidate(conditions(border="0"), 28.4201)], 4)
    second = answer(Number("ssim", "0.81"), [Candidate(similar(border="0"), 0.81), Candidate(similar(channel="rgb"), 0.8101)], 4)
    assert [[hit.conditions["border"] for hit in hits] for hits in agreeing([first, second])] == [["0"], ["0"]]
    assert "have protocols in common" in described("x", [first, second], 4)
    tree = as_tree(first, agreeing([first, second])[0], 4)
    assert [[hit["border"] for hit in tree[key]] for key in ("matches", "alone")] == [[0], [4]]
    third = answer(Number("ssim", "0.81"), [Candidate(similar(channel="rgb"), 0.8101)], 4)
    assert [(tree["matches"], len(tree["alone"])) for tree in (as_tree(first, [], 4), as_tree(third, [], 4))] == [
        ([], 2),
        ([], 1),
    ]
    assert "No protocol gives all of these numbers." in described("x", [first, third], 4)


def test_rows_that_agree_are_joined_and_nothing_is_lost():
    grid = [Candidate(conditions(pixels=p, mean=m), 1.0) for p in ("rounded", "floats") for m in ("images", "mse")]
    (row,) = merged("psnr", grid, 2)
    assert set(row.values["pixels"]) == {"rounded", "floats"} and set(row.values["mean"]) == {"images", "mse"}
    rows = merged("psnr", grid[:3], 2)  # three corners are no rectangle
    cells = {(p, m) for row in rows for p in row.values["pixels"] for m in row.values["mean"]}
    assert cells == {("rounded", "images"), ("rounded", "mse"), ("floats", "images")}


@pytest.mark.parametrize("named", NAMED, ids=lambda named: named.name)
def test_named_protocols_are_made_of_known_words(named):
    for metric, axes in (("psnr", PSNR_AXES), ("ssim", SSIM_AXES)):
        own = named.conditions(metric, 4)
        assert set(own) == set(axes) - {"lr", "enlarged"}
        assert all(value in AXES[axis] for axis, value in own.items() if axis != "border") and int(own["border"]) in borders(4)
        whole = {axis: {"lr": "pil", "enlarged": "network", **own}[axis] for axis in axes}
        assert named.name in known_as(metric, whole, 4)
        assert statement(metric, whole).startswith(f"{metric.upper()}: LR by PIL's bicubic resize; ")


# ------------------------------------------------------------------------------------------------------------ resizers

WEAVE = torch.from_numpy((np.arange(192).reshape(8, 8, 3) * 37 % 256).astype(np.uint8)).permute(2, 0, 1).double() / 255
OPENCV = {  # by OpenCV 5.0.0: 8 x 8 -> 4 x 4 (its first channel) and 2 x 2, and the first 3 x 3 -> 6 x 6 (the second channel)
    4: [[120, 146, 112, 62], [165, 130, 96, 124], [149, 114, 51, 200], [130, 97, 143, 153]],
    2: [152, 128, 103, 72, 124, 158, 122, 157, 147, 209, 77, 128],
    6: [
        [10, 62, 149, 138, 34, 0],
        [64, 82, 112, 98, 47, 17],
        [156, 116, 50, 30, 67, 89],
        [151, 108, 36, 44, 128, 177],
        [51, 62, 77, 132, 194, 233],
        [0, 34, 102, 184, 235, 255],
    ],
}


def levels(image):
    return (image * 255).round().int().tolist()


def test_opencvs_bicubic_is_reproduced():
    assert levels(resizers.opencv(WEAVE, (4, 4))[0]) == OPENCV[4]
    assert levels(resizers.opencv(WEAVE, (2, 2)).permute(1, 2, 0).flatten()) == OPENCV[2]
    assert levels(resizers.opencv(WEAVE[:, :3, :3], (6, 6))[1]) == OPENCV[6]


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_opencvs_bicubic_is_that_of_an_installed_opencv(scale, make_photo):
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    image = make_photo(1, 24 * scale, 20 * scale)
    theirs = cv2.resize(image, (20, 24), interpolation=cv2.INTER_CUBIC)
    own = resizers.opencv(torch.from_numpy(image).permute(2, 0, 1).double() / 255, (24, 20))
    assert levels(own.permute(1, 2, 0)) == theirs.tolist()


def test_all_resizers_give_the_size_and_keep_a_flat_image():
    flat = torch.full((3, 12, 20), 100 / 255, dtype=torch.float64)
    for name, resize in resizers.RESIZERS.items():
        for size in ((6, 10), (24, 40)):
            assert torch.allclose(resize(flat, size), torch.full((3, *size), 100 / 255, dtype=torch.float64), atol=1e-9), name


# ------------------------------------------------------------------------------------------------------------- command


@pytest.fixture(scope="module")
def images(tmp_path_factory, make_photo) -> Path:
    folder = tmp_path_factory.mktemp("hr")
    for i in range(3):
        Image.fromarray(make_photo(i, 40 + 4 * i, 48)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def pictures(images, tmp_path_factory) -> Path:
    """Bicubic by PIL, down and up."""
    folder = tmp_path_factory.mktemp("pictures")
    for path in images.glob("*.png"):
        hr = Image.open(path)
        small = hr.resize((hr.width // 2, hr.height // 2), Image.Resampling.BICUBIC)
        small.resize(hr.size, Image.Resampling.BICUBIC).save(folder / path.name)
    return folder


def independent(images, pictures) -> tuple[float, float]:
    """PSNR of pooled RGB without 8 pixels of border, and scikit-image's SSIM of them."""
    pairs = [[np.array(Image.open(folder / f"{i}.png"))[8:-8, 8:-8] for folder in (images, pictures)] for i in range(3)]
    mse = np.concatenate([(a.astype(float) - b).ravel() ** 2 for a, b in pairs]).mean()
    similar = [structural_similarity(a, b, channel_axis=2) for a, b in pairs]
    return 10 * math.log10(255**2 / mse), float(np.mean(similar))


def test_the_command_finds_a_protocol_and_says_none_of_another_number(images, pictures, tmp_path, run_commands):
    number, similar = independent(images, pictures)
    words = [f"theirs={pictures}", f"--data={images}", "--scale=2", f"--out={tmp_path / 'o'}"]
    right, wrong, bicubic, *bad = run_commands([
        ("sr_dist.evaluate", [*words, f"--find={number:.5f},{similar:.5f}", "--metric=psnr,ssim"]),
        ("sr_dist.evaluate", [*words, f"--find={number + 7:.4f}"]),
        ("sr_dist.evaluate", ["bicubic", *words[1:], f"--find={number:.5f}"]),
        ("sr_dist.evaluate", [*words, "--find=28"]),
        ("sr_dist.evaluate", [*words, "--find=28.1,0.8"]),
        ("sr_dist.evaluate", [*words, "--find=28.1", "--metric=lpips"]),
        ("sr_dist.evaluate", [*words, "--find=0.81"]),
        ("sr_dist.evaluate", [*words, "--find=0.81,28.1", "--metric=psnr,ssim"]),
    ])  # fmt: skip
    assert (right.code, wrong.code, bicubic.code) == (0, 0, 0), right.err + wrong.err + bicubic.err
    psnr, ssim = json.loads((tmp_path / "o" / "report.json").read_text())["find"]
    assert (psnr["method"], psnr["n"], psnr["value"]) == ("theirs", 3, pytest.approx(number, abs=1e-5))
    own = {"metric": "psnr", "channel": "rgb", "border": 8, "mean": "pooled", "range": 255}
    assert any(own.items() <= hit.items() for hit in psnr["matches"])
    own = {"metric": "ssim", "channel": "rgb", "border": 8, "window": "uniform7", "covariance": "sample", "range": 255}
    assert any(own.items() <= hit.items() for hit in ssim["matches"])
    none = json.loads((tmp_path / "o-2" / "report.json").read_text())["find"]  # the first report stays
    assert none["matches"] == [] and none["near"]
    assert "have protocols in common" in right.out and (tmp_path / "o" / "report.md").read_text() in right.out
    assert "No combination reproduces it" in wrong.out and "To state it" not in wrong.out
    assert "| pil | pil | rounded" in bicubic.out and "| pooled |" in bicubic.out  # LR and enlarging, both PIL's
    messages = (
        "find: '28' is no number", "metric: 2 numbers in --find, 1 in --metric; give as many, such as --metric=psnr,ssim",
        "metric: no 'lpips'", "find: 0.81 is no PSNR; values up to 1 are SSIM's, others PSNR's: --metric=ssim\n",
        "find: 0.81 is no PSNR; values up to 1 are SSIM's, others PSNR's: --metric=ssim,psnr\n",
    )  # fmt: skip
    for answered, message in zip(bad, messages, strict=True):
        assert answered.code == 2 and message in answered.err, answered.err


def test_report_json_and_report_md_have_the_same_matches(images, pictures, tmp_path, run_commands):
    """With few digits each number has more protocols than the two have in common."""
    number, similar = independent(images, pictures)
    words = [f"theirs={pictures}", f"--data={images}", "--scale=2", f"--out={tmp_path / 'o'}"]
    (answered,) = run_commands([
        ("sr_dist.evaluate", [*words, f"--find={number:.2f},{similar:.2f}", "--metric=psnr,ssim"]),
    ])  # fmt: skip
    assert answered.code == 0, answered.err
    searches = json.loads((tmp_path / "o" / "report.json").read_text())["find"]
    protocols = [{tuple("rgb" if hit[axis] == "channels" else hit[axis] for axis in SHARED) for hit in one["matches"]}
                 for one in searches]  # fmt: skip
    assert protocols[0] == protocols[1] and protocols[0] and searches[1]["alone"]
    assert folders.summary(tmp_path / "o") == "report of a search"
    text = (tmp_path / "o" / "report.md").read_text()
    for one in searches:
        assert f"{one['number']}: reproduced by {len(one['matches'])} combinations" in text


def test_pictures_of_another_size_are_refused_without_advice_that_a_search_refuses(images, tmp_path, run_commands):
    (tmp_path / "small").mkdir()
    for path in images.glob("*.png"):
        image = Image.open(path)
        image.crop((2, 2, image.width - 2, image.height - 2)).save(tmp_path / "small" / path.name)
    words = [f"x={tmp_path / 'small'}", f"--data={images}", "--scale=2", "--find=28.42", f"--out={tmp_path / 'o'}"]
    (answered,) = run_commands([("sr_dist.evaluate", words)])
    assert answered.code == 2 and answered.err.endswith("differ in size; wrong sizes: x (3)\n"), answered.err


def test_stored_lr_of_another_scale_is_refused_as_by_an_evaluation(make_photo, tmp_path, run_commands):
    for name, size in (("HR", (40, 44)), ("LR", (20, 21))):
        (tmp_path / "pairs" / name).mkdir(parents=True)
        Image.fromarray(make_photo(0, *size)).save(tmp_path / "pairs" / name / "a.png")
    words = [f"--data={tmp_path / 'pairs'}", "--scale=2", "--find=28.42", f"--out={tmp_path / 'o'}"]
    for answered in run_commands([("sr_dist.evaluate", [method, *words]) for method in ("bicubic", "nearest")]):
        assert answered.code == 2, answered
        assert "'a': LR 21 x 20 and HR 44 x 40 are not 2 times apart" in answered.err and answered.err.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_the_progress_of_a_search_is_that_of_other_work(images, monkeypatch, capsys):
    """On stderr, as `core.progress` has it: stdout has the answer alone."""
    monkeypatch.setattr(progress, "PRINT_EVERY", 0)
    all_candidates({"nearest": baseline("nearest", 2)}, batches(images), ["psnr"], torch.device("cpu"))
    out, err = capsys.readouterr()
    assert out == "" and "searching: 1 of 3 images, " in err and "searching: 3 of 3 images" in err


def test_what_depends_on_hr_alone_is_computed_once_for_all_methods(images, monkeypatch):
    """Four channels of each of three images, however many methods and ways to make LR; with the values of one method alone."""
    images_of_targets, computed = [], []
    target, resized = Target.__init__, resizers.pil
    monkeypatch.setattr(Target, "__init__", lambda self, *words: images_of_targets.append(1) or target(self, *words))
    counting = {**resizers.RESIZERS, "pil": lambda *words: computed.append(words[1]) or resized(*words)}
    monkeypatch.setattr(protocol_search, "RESIZERS", counting)
    methods = {name: baseline(name, 2) for name in ("nearest", "bilinear")}
    both = all_candidates(methods, batches(images), ["psnr"], torch.device("cpu"))
    assert len(images_of_targets) == 3 and computed == [(20, 24), (22, 24), (24, 24)]
    alone = all_candidates({"bilinear": methods["bilinear"]}, batches(images), ["psnr"], torch.device("cpu"))
    assert both["bilinear"] == alone["bilinear"] and both["nearest"] != both["bilinear"]


def test_options_that_a_search_does_not_use_are_refused_by_name(images, tmp_path, run_commands):
    words = ["bicubic", f"--data={images}", "--scale=2", "--find=28.42", f"--out={tmp_path / 'o'}"]
    unused = (
        "--protocol=basicsr", "--border=crop", "--against=nearest", "--degradation=bicubic", "--resize=clean",
        f"--attributes={images}", f"--extractor={images}", f"--save_images={tmp_path}",
    )  # fmt: skip
    *answers, other = run_commands([("sr_dist.evaluate", [*words, word]) for word in (*unused, "--metrics=psnr,ssim")])
    for word, answered in zip(unused, answers, strict=True):
        key = word[2:].partition("=")[0]
        assert answered.code == 2 and answered.err.count("\n") == 1, answered
        assert answered.err.startswith(f"error: {key}: not used by --find") and f"leave out --{key}" in answered.err
    assert other.code == 2 and "metrics: ssim with --find; --metric names" in other.err
    assert not (tmp_path / "o").exists()
