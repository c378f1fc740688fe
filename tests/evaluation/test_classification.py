"""The statistics of a classifier, worked out by hand; over ranks they are the same, to the bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from finished import finished
from PIL import Image

from sr_dist.core import ranks
from sr_dist.data.degradations import identity
from sr_dist.data.image_pairs import Batches, numbers_of_this_rank
from sr_dist.data.images import open_images
from sr_dist.evaluation.classifiers import answers as answers_module
from sr_dist.evaluation.classifiers.answers import (
    Answers,
    calibration,
    classify_all,
    confusion,
    head_statistics,
    summary,
    worst_mistakes,
)
from sr_dist.evaluation.classifiers.classification_report import ClassificationReport, reported_weights, write
from sr_dist.evaluation.intervals import wilson
from sr_dist.models import trained
from sr_dist.recipe.labels import Labels

ANIMALS = Labels("class", ("boats", "cats", "dunes"))
FACTS = Labels("attributes", ("Male", "Smiling"))


def answers(truth, predicted, confidence=None):
    truth, predicted = np.atleast_2d(np.array(truth)).T, np.atleast_2d(np.array(predicted)).T
    sure = np.full(truth.shape, 0.9) if confidence is None else np.atleast_2d(np.array(confidence)).T
    images, above = [f"image{i}" for i in range(len(truth))], (truth != predicted).astype(int)
    return Answers(images, truth, predicted, sure, -np.log(sure), above)


def test_counts_by_hand():
    """Five boats, of which one is taken for a dune; two cats, both right; one dune taken for a boat; one of no class."""
    (result,) = head_statistics(answers([0, 0, 0, 0, 0, 1, 1, 2, -1], [0, 0, 0, 0, 2, 1, 1, 0, 1]), ANIMALS).values()
    assert result["n"] == 8
    assert result["confusion"] == [[4, 0, 1], [0, 2, 0], [1, 0, 0]]
    assert result["accuracy"] == 6 / 8
    assert result["per_class"]["boats"] == {"n": 5, "accuracy": 0.8} and result["per_class"]["dunes"]["accuracy"] == 0
    assert result["balanced_accuracy"] == pytest.approx((0.8 + 1 + 0) / 3)
    assert result["warning"].startswith("class is biased: 100.0% of 'cats' are correct, but 0.0% of 'dunes'")


def test_attributes_are_counted_one_by_one():
    truth, predicted = [[1, 1, 0, 0], [1, 0, 0, 0]], [[1, 0, 0, 0], [1, 0, 0, 0]]
    result = head_statistics(answers(truth, predicted), FACTS)
    assert result["Male"]["confusion"] == [[2, 0], [1, 1]] and result["Smiling"]["accuracy"] == 1
    row = summary(answers(truth, predicted), FACTS)
    assert row["accuracy"] == pytest.approx((0.75 + 1) / 2) and row["accuracy_Male"] == 0.75
    assert result["Smiling"]["warning"] is None


def test_a_gap_of_ten_points_is_no_bias_yet():
    truth = [0] * 10 + [1] * 10
    for right, warned in ((9, False), (8, True)):
        predicted = [0] * 10 + [1] * right + [0] * (10 - right)
        (result,) = head_statistics(answers(truth, predicted), Labels("class", ("a", "b"))).values()
        assert bool(result["warning"]) == warned


def test_a_class_that_nobody_has_counts_nowhere():
    (result,) = head_statistics(answers([0, 1, 1], [0, 1, 2]), ANIMALS).values()
    assert result["per_class"]["dunes"] == {"n": 0, "accuracy": None}
    assert result["balanced_accuracy"] == pytest.approx((1 + 0.5) / 2)


def test_calibration_by_hand():
    """Sure of 0.95 and right three times of four; sure of 0.55 and right once of two."""
    error, bins = calibration(np.array([0.95] * 4 + [0.55] * 2), np.array([1, 1, 1, 0, 1, 0]))
    assert error == pytest.approx((4 * abs(0.95 - 0.75) + 2 * abs(0.55 - 0.5)) / 6)
    assert [(b["n"], b["accuracy"]) for b in bins] == [(2, 0.5), (4, 0.75)]
    assert calibration(np.array([1.0, 1.0]), np.array([1, 1]))[0] == 0


def test_wilsons_interval_is_the_published_one():
    """Newcombe 1998, table I: 81 of 263, and 0 of 20."""
    assert wilson(81, 263) == pytest.approx([0.2553, 0.3662], abs=5e-5)
    assert wilson(0, 20) == pytest.approx([0.0, 0.1611], abs=5e-5)
    assert wilson(0, 0) == (0, 1)


def test_the_worst_mistakes_are_the_surest_ones():
    result = worst_mistakes(answers([0, 1, 2, -1], [1, 1, 0, 0], [0.6, 0.99, 0.8, 0.99]), ANIMALS, 5)
    assert [(m["image"], m["truth"], m["said"]) for m in result] == [("image2", "dunes", "boats"), ("image0", "boats", "cats")]
    assert len(worst_mistakes(answers([0, 1, 2], [1, 2, 0]), ANIMALS, 2)) == 2


def test_confusion_is_a_count_of_pairs():
    draw = np.random.default_rng(0)
    truth, predicted = draw.integers(0, 5, 200), draw.integers(0, 5, 200)
    expected = [[int(((truth == i) & (predicted == j)).sum()) for j in range(5)] for i in range(5)]
    assert confusion(truth, predicted, 5).tolist() == expected


@pytest.mark.parametrize("text", ["", "[" * 100_000, '{"weights": 3}'], ids=lambda text: text[:20])
def test_a_damaged_report_is_about_no_weights(tmp_path, text):
    (tmp_path / "classification.json").write_text(text)
    assert reported_weights(tmp_path) is None


# ---- over ranks


@pytest.fixture
def classifier_and_batches(photo_shards, tmp_path):
    network = trained.open_classifier(finished(tmp_path / "k.safetensors", ANIMALS, size=16), "x")
    return network, Batches(open_images(str(photo_shards)), 1, identity.build(identity.Config(), 1), 4)


def test_answers_are_those_of_the_network(classifier_and_batches):
    network, batches = classifier_and_batches
    result = classify_all(network, ANIMALS, batches, torch.device("cpu"))
    assert result.images == batches.images.names
    for i, name in enumerate(result.images):
        hr, _, label = batches.images.load(i)
        chances = network(hr[None].float() / 255).double().softmax(1)[0]
        assert ANIMALS.names[label] == name.split("/")[0]
        assert result.truth[i, 0] == label and result.predicted[i, 0] == int(chances.argmax())
        assert result.confidence[i, 0] == pytest.approx(float(chances.max()), abs=1e-5)
        assert result.loss[i, 0] == pytest.approx(-float(chances[label].log()), abs=1e-4)


@pytest.mark.parametrize("world", [2, 3, 7])
def test_over_ranks_the_answers_are_those_of_one_process(classifier_and_batches, monkeypatch, world):
    """Every rank classifies its batches. The gathered answers equal those of one process to the bit."""
    network, batches = classifier_and_batches
    whole = classify_all(network, ANIMALS, batches, torch.device("cpu"))
    gathered = []
    with monkeypatch.context() as patch:
        patch.setattr(ranks, "all_gather", lambda mine: gathered.append(mine) or [mine])
        for rank in range(world):
            patch.setattr(answers_module, "numbers_of_this_rank", lambda b, rank=rank: of_rank(b, rank, world, monkeypatch))
            classify_all(network, ANIMALS, batches, torch.device("cpu"))
    monkeypatch.setattr(ranks, "all_gather", lambda mine: gathered)
    monkeypatch.setattr(answers_module, "numbers_of_this_rank", lambda b: range(0))
    together = classify_all(network, ANIMALS, batches, torch.device("cpu"))
    assert together.images == whole.images
    assert all(np.array_equal(a, b) for a, b in zip(together[1:], whole[1:], strict=True))


def of_rank(batches, rank, world, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(ranks, "size", lambda: world)
        patch.setattr(ranks, "rank", lambda: rank)
        return numbers_of_this_rank(batches)


def test_the_report_has_tables_images_and_json(classifier_and_batches, tmp_path):
    network, batches = classifier_and_batches
    result = classify_all(network, ANIMALS, batches, torch.device("cpu"))
    report = ClassificationReport("k", {"file": "k", "sha256": "0", "step": 3}, "made photographs", ANIMALS, result)
    write(tmp_path / "out", report, batches)
    tree = json.loads((tmp_path / "out" / "classification.json").read_text())
    right = int((result.truth == result.predicted).sum())
    assert tree["format"] == 1 and tree["n"] == 24 and tree["heads"]["class"]["accuracy"] == right / 24
    assert len(tree["mistakes"]) == min(24 - right, 24)
    text = (tmp_path / "out" / "classification.md").read_text()
    assert "| boats | 8 |" in text and f"{100 * right / 24:.2f} %" in text
    sheet = np.asarray(Image.open(tmp_path / "out" / "mistakes.png"))
    assert sheet.std() > 10 or right == 24
