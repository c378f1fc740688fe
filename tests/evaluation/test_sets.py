"""Several sets in one report, differences against one method, and evaluation without HR."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path

import numpy as np
import processes
import pytest
from PIL import Image
from scipy import stats

from sr_dist import evaluate
from sr_dist.data.degradations import bicubic
from sr_dist.evaluation.intervals import differences, mean_of_sets
from sr_dist.evaluation.without_hr import LRBatches, lr_images

OPTIONS = ["--scale=2", "--batch=2", "--metrics=psnr,ssim", "--cache=none"]


def tree(out: Path) -> dict:
    return json.loads((out / "report.json").read_text())


@pytest.fixture(scope="module")
def two_sets(tmp_path_factory, make_photo) -> Path:
    """a: three images, b: two; the pictures of `theirs` are bicubic's by PIL, in a folder for each set."""
    root = tmp_path_factory.mktemp("sets")
    for name, numbers in (("a", (0, 1, 2)), ("b", (3, 4))):
        for folder in (root / name, root / "theirs" / name):
            folder.mkdir(parents=True)
        for i in numbers:
            hr = Image.fromarray(make_photo(i, 32, 40))
            hr.save(root / name / f"{i}.png")
            small = hr.resize((20, 16), Image.Resampling.BICUBIC)
            small.resize(hr.size, Image.Resampling.BICUBIC).save(root / "theirs" / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def reports(two_sets, tmp_path_factory, run_commands) -> Path:
    out = tmp_path_factory.mktemp("reports")
    words = [f"theirs={two_sets}/theirs", *OPTIONS, "--against=bilinear"]
    both = ["bicubic", *OPTIONS, f"--data=a={two_sets}/a,b={two_sets}/b", f"--save_images={out / 'pictures'}"]
    answers = run_commands([
        ("sr_dist.evaluate", [*words, f"--data=a={two_sets}/a,b={two_sets}/b", f"--out={out / 'both'}"]),
        ("sr_dist.evaluate", [f"theirs={two_sets}/theirs/a", *words[1:], f"--data={two_sets}/a", f"--out={out / 'a'}"]),
        ("sr_dist.evaluate", [*both, f"--out={out / 'saved'}"]),
    ])  # fmt: skip
    assert [answer.code for answer in answers] == [0, 0, 0], [answer.err for answer in answers]
    return out


def test_each_set_is_the_report_of_its_own(reports):
    """Its tables, notes and conditions, under `sets`."""
    both, alone = tree(reports / "both"), tree(reports / "a")
    of_set = both["sets"]["a"]
    for key in ("protocol", "n", "methods", "distances", "differences", "missing", "inputs", "against"):
        assert of_set[key] == alone[key], key
    assert list(both["sets"]) == ["a", "b"] and both["sets"]["b"]["n"] == 2


def test_the_keys_of_a_report_have_the_means_of_the_sets(reports):
    both = tree(reports / "both")
    assert both.keys() >= tree(reports / "a").keys()
    assert both["n"] == 5 and both["data"].startswith("a=") and ",b=" in both["data"]
    for method, row in both["methods"].items():
        for column, value in row.items():
            each = [both["sets"][name]["methods"][method][column] for name in "ab"]
            assert value == pytest.approx(sum(each) / 2), (method, column)
    pair = both["differences"]["theirs - bilinear"]["psnr_y"]
    each = [both["sets"][name]["differences"]["theirs - bilinear"]["psnr_y"] for name in "ab"]
    assert pair["mean"] == pytest.approx((each[0]["mean"] + each[1]["mean"]) / 2) and pair["n"] == 5
    rows = [json.loads(line) for line in (reports / "both" / "images.jsonl").read_text().splitlines()]
    assert [(row["set"], row["image"]) for row in rows if row["method"] == "theirs"] == [("a", "0"), ("a", "1"), ("a", "2"),
                                                                                        ("b", "3"), ("b", "4")]  # fmt: skip


def test_the_number_of_images_behind_a_distance_is_that_of_each_set(two_sets, stand_in, tmp_path):
    """The means named the first set's beside the extractor: 3 of 5 images."""
    words = ["bicubic", "--scale=2", "--metrics=fid", "--cache=none", f"--extractor={stand_in}", f"--out={tmp_path / 'out'}"]
    assert evaluate.main([*words, f"--data=a={two_sets}/a,b={two_sets}/b"]) == 0
    report = tree(tmp_path / "out")
    assert [report["sets"][name]["protocol"]["fd_toy"]["n"] for name in "ab"] == [3, 2]
    whole, of_set = report["protocol"], report["sets"]["a"]["protocol"]
    assert whole == {**of_set, "fd_toy": {key: value for key, value in of_set["fd_toy"].items() if key != "n"}}
    assert evaluate.main([*words, f"--data=a={two_sets}/a,b={two_sets}/b"]) == 0 and not (tmp_path / "out-2").exists()


def test_a_report_of_sets_has_a_table_of_each_and_of_the_mean(reports):
    text = (reports / "both" / "report.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## Means over 2 sets: a, b", "## a", "## b"]
    page = (reports / "both" / "report.html").read_text()
    ids = re.findall(r'id="([\w-]+)"', page)
    assert {"scores", "differences", "sets", "a-scores", "b-scores", "set-a", "set-b"} <= set(ids) and len(ids) == len(set(ids))
    for anchor in re.findall(r'href="#([^"]+)"', page):
        assert anchor in ids
    assert page.index('id="differences"') < page.index('id="scores"')


def test_the_same_sets_again_replace_the_report_and_fewer_do_not(reports, two_sets, run_commands):
    words = [f"theirs={two_sets}/theirs", *OPTIONS, f"--out={reports / 'both'}"]
    same, fewer = run_commands([
        ("sr_dist.evaluate", [*words, f"--data=a={two_sets}/a,b={two_sets}/b", "--against=bilinear"]),
        ("sr_dist.evaluate", [*words, f"--data=a={two_sets}/a"]),
    ])  # fmt: skip
    assert same.code == fewer.code == 0, same.err + fewer.err
    assert "a: 3 images\nwarning: fewer than 10 images: " in same.out
    assert "is now in" not in same.out and "is now in" in fewer.out
    (reports / "both").rename(reports / "fewer")
    (reports / "both-2").rename(reports / "both")


def test_images_of_several_sets_are_saved_by_set(reports):
    names = sorted(str(path.relative_to(reports / "pictures")) for path in (reports / "pictures").rglob("*.png"))
    assert names == ["bicubic/a/0.png", "bicubic/a/1.png", "bicubic/a/2.png", "bicubic/b/3.png", "bicubic/b/4.png"]


# ------------------------------------------------------------------------------------------------------- differences


def test_one_method_is_subtracted_from_all_others(reports):
    """Its differences stand first, also in the page, whatever the order of the methods."""
    report = tree(reports / "a")
    assert report["against"] == "bilinear"
    assert list(report["differences"]) == [
        "nearest - bilinear", "bicubic - nearest", "theirs - nearest", "bicubic - bilinear", "theirs - bilinear",
        "theirs - bicubic",
    ]  # fmt: skip
    own = report["methods"]
    mean = report["differences"]["nearest - bilinear"]["psnr_y"]["mean"]
    assert mean == pytest.approx(own["nearest"]["psnr_y"] - own["bilinear"]["psnr_y"])
    lines = (reports / "a" / "report.md").read_text().splitlines()
    pairs = [line.split(" | ")[0].removeprefix("| ") for line in lines if re.match(r"\| \w+ - \w+ ", line)]
    assert pairs == ["nearest - bilinear", "bicubic - bilinear", "theirs - bilinear", "theirs - nearest", "theirs - bicubic"]


def test_differences_against_a_method_are_the_others_with_the_other_sign():
    rows = [
        {"image": i, "method": m, "x": float(v)} for m, v0 in (("a", 1), ("b", 5)) for i, v in enumerate((v0, v0 + 2, v0 * 2))
    ]
    usual, turned = differences(rows, ["a", "b"], ["x"])["b - a"]["x"], differences(rows, ["a", "b"], ["x"], "b")["a - b"]["x"]
    assert (turned["mean"], turned["low"], turned["high"]) == (-usual["mean"], -usual["high"], -usual["low"])


def test_the_mean_of_sets_has_the_interval_of_welch_and_satterthwaite():
    """For two sets it is Welch's t-test: scipy's interval of a difference of means, halved."""
    draw = np.random.default_rng(0)
    a, b = draw.normal(1, 1, 8), draw.normal(2, 3, 20)

    def interval(x):
        half = stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))
        return {"mean": x.mean(), "low": x.mean() - half, "high": x.mean() + half, "n": len(x)}

    theirs = stats.ttest_ind(a, -b, equal_var=False).confidence_interval(0.95)
    result = mean_of_sets([interval(a), interval(b)])
    assert result["n"] == 28 and result["mean"] == pytest.approx((a.mean() + b.mean()) / 2)
    assert (result["low"], result["high"]) == (pytest.approx(theirs.low / 2), pytest.approx(theirs.high / 2))
    assert mean_of_sets([interval(a), None]) is None


# -------------------------------------------------------------------------------------------------------- without HR

SHARPNESS = """
BETTER = {"sharpness": "higher"}
NO_REFERENCE = True

def per_image(sr, hr, protocol, grey):
    assert sr is hr, "there is no HR"
    return {"sharpness": [float(255 * (image[:, :, 1:] - image[:, :, :-1]).abs().mean()) for image in sr.double().clamp(0, 1)]}
"""


def test_a_batch_without_hr_has_few_pixels_of_what_is_made_of_it(two_sets, monkeypatch):
    """LR of 40 x 32 becomes 80 x 64: with room for 10,240 pixels two of them, not eight."""
    monkeypatch.setattr("sr_dist.data.image_pairs.MOST_PIXELS", 2 * 80 * 64)
    images = lr_images(str(two_sets / "a"), None)
    assert [len(group) for group in LRBatches(images, 2, bicubic.build(bicubic.Config(), 2), 8).groups] == [2, 1]


def test_lr_alone_is_scored_by_metrics_that_need_no_reference(two_sets, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "sharpness.py").write_text(SHARPNESS)
    lr = tmp_path / "lr"
    lr.mkdir()
    for path in (two_sets / "a").glob("*.png"):
        Image.open(path).resize((20, 16), Image.Resampling.BICUBIC).save(lr / f"{path.stem}x2.png")
    unused = ("--border=crop", "--degradation=bicubic", "--select={c: 3}", "--split=0.5,0.5", "--part=test")
    words = [f"theirs={two_sets}/theirs/a", f"--lr={lr}", "--scale=2", "--cache=none"]
    calls = [
        ("sr_dist.evaluate", [*words, "--metrics=own.sharpness", f"--out={tmp_path / 'out'}"]),
        ("sr_dist.evaluate", [*words, "--metrics=own.sharpness,psnr"]),
        ("sr_dist.evaluate", words),
        ("sr_dist.evaluate", [*words, "--find=28.42"]),
        ("sr_dist.evaluate", [f"theirs={lr}", *words[1:], "--metrics=own.sharpness"]),
        *(("sr_dist.evaluate", [*words, option]) for option in unused),
    ]  # fmt: skip
    path = os.pathsep.join(map(str, (processes.ROOT, processes.ROOT / "tests", tmp_path)))
    output, _ = processes.run(0, "run_commands", json.dumps(calls), PYTHONPATH=path)
    (code, _, err, _), *refused = json.loads(output.splitlines()[-1])
    assert code == 0, err
    report = tree(tmp_path / "out")
    assert report["data"] == f"{lr} (LR alone)" and "without HR: only metrics that need no reference" in report["notes"]
    assert report["methods"]["nearest"].keys() == {"sharpness"} and report["n"] == 3
    pixels = [np.asarray(Image.open(two_sets / "theirs/a" / f"{i}.png"), float) for i in range(3)]
    expected = np.mean([np.abs(np.diff(image.transpose(2, 0, 1), axis=2)).mean() for image in pixels])
    assert report["methods"]["theirs"]["sharpness"] == pytest.approx(expected)
    assert "bicubic is on the right" in (tmp_path / "out" / "report.html").read_text()
    messages = ("metrics: psnr compares with HR", "metrics: all metrics compare with HR", "find: PSNR and SSIM need HR",
                "METHOD: picture 20 x 16 and 2 times LR (40 x 32) of '0x2' differ in size; wrong sizes: theirs (3)",
                *(f"{option[2:].partition('=')[0]}: not used by --lr alone" for option in unused))  # fmt: skip
    for (code, _, err, _), message in zip(refused, messages, strict=True):
        assert code == 2 and message in err and err.count("\n") == 1, err
