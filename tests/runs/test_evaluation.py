"""Evaluation in real processes: the same numbers on one, two and three ranks, and after a kill."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from finished import finished
from PIL import Image
from processes import LONGEST, environment, finish, kill, run, start, wait_for

from sr_dist.data.format import open_shards
from sr_dist.recipe.labels import Labels

OPTIONS = ["bicubic", "--scale=2", "--batch=2", "--metrics=psnr,ssim,fid,kid,patch_fid,class_fid", "--cache=none"]


FILES = ["images.jsonl", "report.html", "report.json", "report.md", "report_pictures"]  # two images are wider than the page's


class Toy(torch.nn.Module):
    """Sixteen features per image: products of the means of its parts."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        small = torch.nn.functional.adaptive_avg_pool2d(x / 64, 4)
        return (small[:, 0] * (1 + small[:, 1])).flatten(1) + x.std((1, 2, 3))[:, None] / 20


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("extractor") / "toy.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(Toy(), torch.rand(2, 3, 299, 299)).save(str(path))
    return path


@pytest.fixture(scope="module")
def labelled(tmp_path_factory, make_photo) -> Path:
    """Shards of 23 images in two classes; two of the images have patches of 299 pixels."""
    from shards.build import build

    root = tmp_path_factory.mktemp("evaluation")
    for i in range(23):
        folder = root / "images" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        size = (300, 620) if i in (4, 15) else (40 + i % 3 * 4, 44)
        Image.fromarray(make_photo(i, *size)).save(folder / f"{i:02d}.png")
    build("class_folders", str(root / "images"), root / "shards", {"per_shard": "10"})
    return root / "shards"


def tree(out: Path) -> dict:
    return json.loads((out / "report.json").read_text())


def numbers(report: dict) -> dict[str, float]:
    """All numbers that methods have, in one row."""
    rows = {f"{m}/{c}": value for m, values in report["methods"].items() for c, value in values.items()}
    for column, distance in report["distances"].items():
        rows[f"{column}/floor"] = distance["floor"]
        for method, estimate in distance["methods"].items():
            rows |= {f"{column}/{method}/{key}": value for key, value in estimate.items()}
    return rows


def assert_equal_numbers(report: dict, expected: dict) -> None:
    actual, wanted = numbers(report), numbers(expected)
    assert actual.keys() == wanted.keys()
    for name, value in wanted.items():
        assert actual[name] == (None if value is None else pytest.approx(value, rel=1e-6, abs=1e-9)), name


def assert_equal_answers(report: dict, expected: dict) -> None:
    """Counts and tests are equal; only confidences may differ in the last digits."""
    for key in ("confusion", "accuracy", "accuracy_interval", "agreement", "against_hr", "per_class"):
        actual, wanted = (
            {(k, name, method): statistics[key] for k, one in report["attributes"].items() for name, head in one["heads"].items()
             for method, statistics in head["methods"].items()} for report in (report, expected)
        )  # fmt: skip
        assert actual == wanted, key
    assert report["ranking"] == expected["ranking"] and report["attributes"].keys() == {"k"}


def batches_done(out: Path) -> int:
    return len(list(out.glob(".partial/*/*.npz")))


def killed(words: list[str], out: Path, at: int, *made: Path) -> None:
    """An evaluation that was killed when `at` batches were done. A busy machine may look too late: then it begins again, without
    the folders that it has made."""
    for _ in range(10):
        process = start(0, "sr_dist.evaluate", *words)
        wait_for(lambda process=process: batches_done(out) >= at or process.poll() is not None)
        kill(process)
        code, _, err = finish(process)
        assert code in (0, -signal.SIGKILL), err
        if not (out / "report.json").exists():
            return
        for folder in (out, *made):
            shutil.rmtree(folder)
    raise AssertionError("it was over each time")


@pytest.mark.slow
def test_a_killed_evaluation_continues_on_other_numbers_of_ranks(labelled, toy, tmp_path):
    """Evaluations that are killed on one process and continued on two or three ranks equal one that is not killed."""
    k = finished(tmp_path / "k.safetensors", Labels("class", ("a", "b")), size=16)
    options = [*OPTIONS, f"--data={labelled}", f"--extractor={toy}", f"--attributes={k}"]
    output, _ = run(0, "sr_dist.evaluate", *options, f"--out={tmp_path / 'whole'}")
    assert "continuing" not in output
    whole = tree(tmp_path / "whole")
    assert whole["methods"]["bicubic"].keys() >= {"psnr_y", "fd_toy", "kd_toy", "patch_fd_toy", "class_fd_toy"}
    assert not [name for name, value in numbers(whole).items() if value is None and "patch" not in name and "class" not in name]
    methods = whole["attributes"]["k"]["heads"]["class"]["methods"]
    assert list(methods) == ["HR", "nearest", "bilinear", "bicubic"]
    assert all(np.sum(statistics["confusion"]) == 23 for statistics in methods.values())
    assert (whole["distances"]["fd_toy"]["width"], whole["distances"]["patch_fd_toy"]["methods"]["bicubic"]["n"]) == (16, 4)

    for ranks in (2, 3):
        out = tmp_path / f"killed{ranks}"
        at = random.randint(1, 7)
        killed([*options, f"--out={out}"], out, at)
        left = batches_done(out)
        print(f"killed when {at} batches were done; {left} are left")  # pytest shows it with a failure below
        output, _ = run(ranks, "sr_dist.evaluate", *options, f"--out={out}")
        done, total = map(int, re.search(r"continuing: (\d+) of (\d+) batches are done", output).groups())
        assert left - 1 <= done <= left < total, f"killed at {at}"
        assert_equal_numbers(tree(out), whole)
        assert_equal_answers(tree(out), whole)
        rows = [(path / "images.jsonl").read_text() for path in (out, tmp_path / "whole")]
        assert rows[0] == rows[1]
        assert sorted(path.name for path in out.iterdir()) == FILES


@pytest.mark.slow
def test_pictures_of_a_killed_evaluation_score_alike_on_other_numbers_of_ranks(labelled, tmp_path):
    """Bicubic's images, saved by an evaluation that is killed and continued on two ranks; then the folder beside bicubic, killed
    and continued on three; and the search for a protocol, on one and three ranks."""
    options = ["--scale=2", "--batch=2", "--metrics=psnr,ssim", "--cache=none", f"--data={labelled}"]
    saving = ["bicubic", *options, f"--save_images={tmp_path / 'p'}", f"--out={tmp_path / 'saved'}"]
    scoring = [f"theirs={tmp_path / 'p' / 'bicubic'}", *options, f"--out={tmp_path / 'out'}"]
    for ranks, words, out, made in ((2, saving, tmp_path / "saved", [tmp_path / "p"]), (3, scoring, tmp_path / "out", [])):
        killed(words, out, 2, *made)
        output, _ = run(ranks, "sr_dist.evaluate", *words)
        assert "continuing: " in output
    assert len(list((tmp_path / "p" / "bicubic").rglob("*.png"))) == 23
    report = tree(tmp_path / "out")
    assert report["methods"]["theirs"] == report["methods"]["bicubic"] == tree(tmp_path / "saved")["methods"]["bicubic"]

    run(0, "sr_dist.evaluate", *scoring[:-1], "--limit=4", f"--out={tmp_path / 'four'}")
    number = f"{tree(tmp_path / 'four')['methods']['theirs']['psnr_y']:.5f}"
    search = [scoring[0], "--scale=2", f"--data={labelled}", "--limit=4", f"--find={number}"]
    for ranks in (0, 3):
        run(ranks, "sr_dist.evaluate", *search, f"--out={tmp_path / f'find{ranks}'}")
    one, three = (tree(tmp_path / f"find{ranks}") for ranks in (0, 3))
    assert one == three
    usual = {"pixels": "rounded", "channel": "y_rounded", "border": 2, "range": 255, "mean": "images"}
    assert any(usual.items() <= hit.items() for hit in one["find"]["matches"])


SETS = """
import json, sys
import numpy as np, torch
from sr_dist.core import ranks
from sr_dist.evaluation.distances.features import Features, frechet_distances, halves, jackknifed
from sr_dist.evaluation.metrics import class_fid, kid, precision, recall

accelerator = ranks.open_accelerator("no")
draw = np.random.default_rng(0)
results = {}
for name, total, width, per, cuts in json.loads(sys.argv[1]):
    x = draw.normal(1, 2, (total * per, width)).astype(np.float32)
    y = (x + draw.normal(0, 1, x.shape)).astype(np.float32)
    cuts = cuts[str(ranks.size())]
    low, high = cuts[ranks.rank()] * per, cuts[ranks.rank() + 1] * per
    images = np.repeat(np.arange(total), per)[low:high]
    a, b = (Features(rows[low:high], images, total, torch.device("cpu")) for rows in (x, y))
    labels = np.arange(total) % 3
    moments = a.moments()
    results[name] = {
        "mean": moments.mean.tolist(), "covariance": moments.covariance.tolist(), "n": moments.n,
        "fid": vars(jackknifed(a, b)), "floor": frechet_distances([halves(a)])[0], "kid": vars(kid.of_sets(a, b, labels)),
        "precision": vars(precision.of_sets(a, b, labels)), "recall": vars(recall.of_sets(a, b, labels)),
        "class": vars(class_fid.of_sets(a, b, labels)) if per == 1 else None,
        "numpys": np.cov(x.astype(np.float64), rowvar=False).tolist(),
    }
if ranks.is_first():
    open(sys.argv[2], "w").write(json.dumps(results))
ranks.barrier()
ranks.destroy_group()
"""
# name, images, width, rows per image, and where ranks' slices begin and end: uneven, and empty first, in the middle, last
CASES = [
    ["many", 200, 6, 1, {"1": [0, 200], "2": [0, 67, 200], "3": [0, 5, 180, 200]}],
    ["fewer than columns", 20, 30, 1, {"1": [0, 20], "2": [0, 0, 20], "3": [0, 9, 9, 20]}],
    ["patches", 30, 5, 4, {"1": [0, 30], "2": [0, 30, 30], "3": [0, 0, 11, 30]}],
]


@pytest.mark.slow
def test_moments_and_distances_are_the_same_on_one_two_and_three_ranks(tmp_path):
    (tmp_path / "sets.py").write_text(SETS)
    results = {}
    for ranks in (1, 2, 3):
        launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(ranks), "--num_machines", "1"]
        launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
        out = tmp_path / f"{ranks}.json"
        command = [sys.executable, *(launcher if ranks > 1 else []), str(tmp_path / "sets.py"), json.dumps(CASES), str(out)]
        cpu = environment(ACCELERATE_USE_CPU="true")
        done = subprocess.run(command, env=cpu, capture_output=True, text=True, timeout=LONGEST)
        assert done.returncode == 0, done.stderr[-3000:]
        results[ranks] = json.loads(out.read_text())
    for name, one in results[1].items():
        np.testing.assert_allclose(one["covariance"], one["numpys"], rtol=1e-12, atol=1e-14)
        for ranks in (2, 3):
            other = results[ranks][name]
            assert other["n"] == one["n"]
            np.testing.assert_allclose(other["mean"], one["mean"], rtol=1e-12)
            np.testing.assert_allclose(other["covariance"], one["covariance"], rtol=1e-12, atol=1e-13)
            assert other["floor"] == pytest.approx(one["floor"], rel=1e-6)
            for metric in ("fid", "kid", "precision", "recall", "class"):
                actual, wanted = ({key: value for key, value in (r[metric] or {}).items() if value} for r in (other, one))
                assert actual == pytest.approx(wanted, rel=1e-6), (name, ranks, metric)


def test_an_error_late_in_an_evaluation_keeps_the_batches_before_it(run_commands, labelled, tmp_path):
    """An image of the last shard is damaged. Once it is repaired, the same command continues after the batches that are done."""
    folder, out = shutil.copytree(labelled, tmp_path / "shards"), tmp_path / "out"
    shards = open_shards(str(folder))
    last, index = shards.paths()[-1], shards.index(len(shards.paths()) - 1)
    whole = last.read_bytes()
    at = int(index["hr_offset"][0]) + 50
    call = ("sr_dist.evaluate", ["bicubic", "--scale=2", "--batch=2", "--metrics=psnr", f"--data={folder}", f"--out={out}"])
    last.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    (damaged,) = run_commands([call])
    assert damaged.code == 2 and damaged.err.startswith("error: ") and index["key"][0].decode() in damaged.err
    assert [path.name for path in out.iterdir()] == [".partial"]
    done = batches_done(out)
    last.write_bytes(whole)
    (mended,) = run_commands([call])
    assert mended.code == 0 and f"continuing: {done} of " in mended.out and done > 1
    assert sorted(path.name for path in out.iterdir()) == FILES


def test_bad_inputs_end_with_one_line_and_nothing_half_written(run_commands, make_photo, labelled, tmp_path, monkeypatch):
    """A corrupt image, LR and HR of different size, a missing LR, a truncated weights file. Nothing is written."""
    good = tmp_path / "good"
    good.mkdir()
    for i in range(3):
        Image.fromarray(make_photo(i, 40, 44)).save(good / f"{i}.png")
    shutil.copytree(good, tmp_path / "corrupt")
    (tmp_path / "corrupt" / "2.png").write_bytes((good / "2.png").read_bytes()[:1500])
    shutil.copytree(good, tmp_path / "headless")
    (tmp_path / "headless" / "1.png").write_bytes(b"")
    for name, size in (("HR", (40, 44)), ("LR", (20, 21))):
        (tmp_path / "pairs" / name).mkdir(parents=True)
        Image.fromarray(make_photo(0, *size)).save(tmp_path / "pairs" / name / "a.png")
    shutil.copytree(tmp_path / "pairs", tmp_path / "lonely")
    (tmp_path / "lonely" / "LR" / "a.png").unlink()
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "inception-2015-12-05.pt").write_bytes(b"PK cut short")
    monkeypatch.setenv("SR_DIST_WEIGHTS", str(weights))
    hats = finished(tmp_path / "hats.safetensors", Labels("attributes", ("Wearing_Hat",)))
    cats = finished(tmp_path / "cats.safetensors", Labels("class", ("a", "cats")))
    out = tmp_path / "out"
    plain = ["--scale=2", "--metrics=psnr", f"--out={out}"]
    mistakes = [
        (["bicubic", f"--data={tmp_path / 'corrupt'}", *plain], "2.png' cannot be decoded"),
        (["bicubic", f"--data={tmp_path / 'headless'}", *plain], "1.png' is not an image that can be read"),
        (
            ["bicubic", f"--data={good}", *plain[:2], f"--out={tmp_path / 'file' / 'deeper'}"],
            "deeper' cannot be created or written: ",
        ),
        ([f"{tmp_path}/cut.safetensors,{tmp_path}/./cut.safetensors", f"--data={good}", *plain], "names a method twice"),
        (["bicubic", f"--data={good}", *plain, "--limit=0"], "limit: "),
        (["bicubic", f"--data={tmp_path / 'pairs'}", *plain], "'a': LR 21 x 20 and HR 44 x 40 are not 2 times apart"),
        (["bicubic", f"--data={tmp_path / 'lonely'}", *plain], "data: no LR for a.png in "),
        (["bicubic", f"--data={tmp_path / 'empty'}", *plain], "data: no images in "),
        ([str(tmp_path / "cut.safetensors"), f"--data={good}", *plain], "METHOD: "),
        (["bicubic", f"--data={good}", "--scale=2", f"--out={out}"], "inception-2015-12-05.pt' is damaged or another file"),
        (["bicubic", f"--data={good}", *plain, "--metrics=psnr,fidd"], "metrics: no 'fidd'"),
        (["bicubic", f"--data={good}", *plain, "--extractor=nowhere.pt"], "extractor: nothing is at 'nowhere.pt'"),
        (["bicubic", f"--data={good}", *plain, "--resize=legacy_tensorflow"], "resize: "),
        (["bicubic", f"--data={good}", *plain, "--attributes=nowhere"], "attributes: nothing is at 'nowhere'"),
        (["bicubic", f"--data={good}", *plain, f"--attributes={good}/0.png"], "attributes: "),
        (["bicubic", f"--data={good}", *plain, f"--attributes={hats},{tmp_path}/./hats.safetensors"], "names a classifier twice"),
        (
            ["bicubic", f"--data={labelled}", *plain, f"--attributes={hats}"],
            "no attribute 'Wearing_Hat'; they have no attributes",
        ),
        (["bicubic", f"--data={labelled}", *plain, f"--attributes={cats}"], "distinguishes 2 classes (a, cats), the shards in"),
        (
            ["bicubic", f"--data={good}", *plain, "--split=0.5,0.5", "--part=validation"],
            "is a folder of images; only shards have",
        ),
        (["bicubic", f"--data={labelled}", *plain, "--split=0.5,0.5"], "part: missing; the split [0.5, 0.5] has training, valid"),
        (
            ["bicubic", f"--data={labelled}", *plain, "--split=0.5,0.5", "--part=test"],
            "part: test; the split [0.5, 0.5] has trai",
        ),
        (
            ["bicubic", f"--data={labelled}", *plain, "--split=0.5,0.4", "--part=training"],
            "split: [0.5, 0.4] are not two or three",
        ),
        (["bicubic", f"--data={labelled}", *plain, "--part=test"], "part: test needs --split"),
        (["bicubic", f"--data={labelled}", *plain, "--select={c: 3}"], "error: select.c: no class or attribute of that name"),
        (["bicubic", f"--data={labelled}", *plain, "--select=3"], "select: "),
    ]
    answers = run_commands([("sr_dist.evaluate", options) for options, _ in mistakes])
    for (options, message), answer in zip(mistakes, answers, strict=True):
        assert answer.code == 2, (options, answer)
        assert answer.err.startswith("error: ") and answer.err.count("\n") == 1 and message in answer.err, (options, answer.err)
    assert not out.exists()
