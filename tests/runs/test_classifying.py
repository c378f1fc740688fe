"""Classifiers and the networks that are trained with them, by `sr_dist.train`, on synthetic photographs with attributes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from finished import finished
from photographs import made_photo
from PIL import Image
from processes import ROOT, metrics, run
from safetensors import safe_open
from wandb_records import history

from sr_dist.data.images import open_images
from sr_dist.data.select import Portion
from sr_dist.models import trained
from sr_dist.recipe.labels import Labels

TINY = "{name: digit_cnn, size: 16, widths: [4, 6, 8], features: [8, 8], norm: none, dropout: 0}"
SPLIT = ["--data.split=[0.5, 0.25, 0.25]", "--data.select={}", "--data.balance={}"]
QUICK = ["--data.crop=16", "--data.workers=0", "--data.batch=8", "--log.wandb=off", "--log_every=2", "--ema.decay=0.5"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """48 photographs of 16 pixels in two classes, dark ones and bright ones, with attributes by their number."""
    from shards.build import build

    root = tmp_path_factory.mktemp("attributed")
    for number in range(48):
        folder = root / "photos" / ("bright" if number % 2 else "dark")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(made_photo(number, 16, 16) // 2 + number % 2 * 120).save(folder / f"{number}.png")
    build("made.attributed", str(root / "photos"), root / "shards", {"per_shard": "16"})
    return root / "shards"


def train(name: str, shards: Path, runs: Path, *words: str, expect: int = 0) -> tuple[str, str]:
    data = [f"--data.train={shards}", f"--runs={runs}", *SPLIT, *QUICK]
    return run(0, "sr_dist.train", ROOT / "configs" / f"{name}.yaml", *data, *words, expect=expect)


def classifier(shards: Path, runs: Path, *words: str) -> dict:
    train(
        "classifier_eyeglasses", shards, runs, f"--classifier={TINY}", "--schedule={name: constant}", "--data.augment={}", *words
    )
    name = next((word.split("=")[1] for word in words if word.startswith("--name=")), "classifier_eyeglasses")
    (report,) = (runs / name / "eval").glob("*/classification.json")
    return json.loads(report.read_text())


@pytest.mark.slow
def test_a_classifier_learns_is_selected_by_validation_reported_and_used_in_a_loss(shards, tmp_path):
    """The class is the brightness, so it can be learned. The report is about the best checkpoint, which then guides a
    generator."""
    often = ["--steps=60", "--validate_every=10", "--save_every=10", "--optimizer.learning_rate=3e-3"]
    tree = classifier(shards, tmp_path, "--objective={name: classify, labels: class, balance: weights}", *often)
    folder = tmp_path / "classifier_eyeglasses"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scores = {row["step"]: row["validation/balanced_accuracy"] for row in rows if "validation/loss" in row}
    assert list(scores) == [10, 20, 30, 40, 50, 60]
    best = max(scores, key=lambda step: (scores[step], -step))
    assert scores[best] == 1 and tree["weights"]["step"] == best
    assert all("reading/accuracy" in row for row in metrics(folder))
    head = tree["heads"]["class"]
    assert head["accuracy"] >= 0.9 and list(head["per_class"]) == ["bright", "dark"]
    opened = trained.open_classifier(str(folder), "x")
    assert (opened.labels, opened.size, opened.file.parent.name) == (Labels("class", ("bright", "dark")), 16, f"{best:07d}")
    with safe_open(opened.file, "pt") as file:
        assert json.loads(file.metadata()["sr_dist"])["size"] == 16

    before = opened.file.read_bytes()
    runs = f"--objective.content.classifier.runs={folder}"
    thin = ["--generator={name: msrresnet, width: 8, num_blocks: 1}", "--discriminator={name: patch, widths: [8, 12]}"]
    features = [f"--extractor={folder}", "--metrics=psnr,fid", "--keep.best=fd_classifier_eyeglasses"]
    train("srgan_mse_cnn_mnist_x2", shards, tmp_path, runs, *thin, *features, "--steps=4", "--validate_every=4", "--save_every=4")
    (*_, row) = metrics(tmp_path / "srgan_mse_cnn_mnist_x2")
    best = json.loads((tmp_path / "srgan_mse_cnn_mnist_x2" / "checkpoints" / "0000004" / "state.json").read_text())["best"]
    last = json.loads((tmp_path / "srgan_mse_cnn_mnist_x2" / "metrics.jsonl").read_text().splitlines()[-1])
    assert best["value"] == last["validation/fd_classifier_eyeglasses"] > 0
    readings = {f"reading/classifier_classifier_eyeglasses_{name}" for name in ("sr", "hr", "difference", "accuracy")}
    assert readings <= set(row) and "loss/classifier" in row
    difference = row["reading/classifier_classifier_eyeglasses_difference"]
    assert row["loss/classifier"] == pytest.approx(0.01 * difference, rel=1e-4)
    assert opened.file.read_bytes() == before
    sheet = Image.open(tmp_path / "srgan_mse_cnn_mnist_x2" / "samples" / "0000004.png")
    assert sheet.width == 4 * (160 + 4) + 4  # four views of 16 pixels, enlarged


@pytest.mark.slow
def test_attributes_are_learned_and_a_finished_run_initializes_another(shards, tmp_path):
    several = "--objective={name: classify, labels: [Male, Smiling]}"
    quick = ["--steps=4", "--keep=1", "--validate_every=none", "--save_every=4", "--log.wandb=offline"]
    tree = classifier(shards, tmp_path, several, *quick)
    tables = {key for row in history(tmp_path / "classifier_eyeglasses") for key in row if key.startswith("classes/")}
    assert {"/".join(key.split("/")[:2]) for key in tables} == {"classes/Male", "classes/Smiling"}
    assert list(tree["heads"]) == ["Male", "Smiling"] and tree["heads"]["Male"]["n"] == tree["n"] > 0
    assert_evaluate_agrees_with_the_run(tree, shards, tmp_path)
    start = f"--init.classifier={tmp_path / 'classifier_eyeglasses'}"
    classifier(shards, tmp_path, start, "--name=one", "--steps=2", "--keep=1", "--validate_every=none", "--save_every=2")
    log = (tmp_path / "one" / "log.txt").read_text()
    assert "its head (logits.bias, logits.weight) has another number of outputs and begins anew" in log


def assert_evaluate_agrees_with_the_run(tree: dict, shards: Path, runs: Path) -> None:
    """On the test part of the same split, sr_dist.evaluate reports the accuracy on HR of the run's own report, to the last digit.
    Its features are those of the run's classifier."""
    k, out = runs / "classifier_eyeglasses", runs / "seen"
    part = ["--split=[0.5, 0.25, 0.25]", "--part=test", f"--attributes={k}"]
    run(0, "sr_dist.evaluate", "bicubic", "--scale=2", f"--data={shards}", *part, "--metrics=psnr,fid", f"--extractor={k}",
        "--cache=none", f"--out={out}")  # fmt: skip
    report = json.loads((out / "report.json").read_text())
    assert report["n"] == tree["n"] and report["portion"] == {"select": {}, "split": [0.5, 0.25, 0.25], "part": "test"}
    heads = report["attributes"]["classifier_eyeglasses"]["heads"]
    for name, head in tree["heads"].items():
        assert heads[name]["methods"]["HR"].items() >= head.items()
    rows = [json.loads(line) for line in (out / "images.jsonl").read_text().splitlines()]
    assert {row["image"] for row in rows} == set(open_images(str(shards), portion=Portion({}, (0.5, 0.25, 0.25), 2)).names)
    assert report["distances"]["fd_classifier_eyeglasses"]["width"] == 8 and "fid" not in report["methods"]["bicubic"]
    assert report["protocol"]["fd_classifier_eyeglasses"]["resize"].startswith("bilinear, to 16 x 16")


def test_a_classifier_of_an_attribute_that_the_shards_lack_is_refused_before_training(shards, tmp_path):
    beards = finished(tmp_path / "beards.safetensors", Labels("attributes", ("Smilling",)), size=16)

    _, err = train("srcgan_eyeglasses", shards, tmp_path, "--objective.content={classifier: {weight: 1, runs: "
                         f"[{beards}]}}}}", "--discriminator.crop=16", expect=2)  # fmt: skip
    assert "have no attribute 'Smilling'; did you mean 'Smiling'?" in err and err.startswith("error: ")
    assert not (tmp_path / "srcgan_eyeglasses").exists()
