"""Classifiers' answers to restored images, worked out by hand: counts, agreement, drops, comparisons."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from finished import finished
from scipy.stats import binomtest
from test_report import METRICS, batches_of, methods_for, store, table

from sr_dist.core.errors import UserError
from sr_dist.data.degradations import bicubic
from sr_dist.data.image_pairs import Batches
from sr_dist.data.images import open_images
from sr_dist.data.select import Portion
from sr_dist.evaluation.classifiers.answers import Answers
from sr_dist.evaluation.classifiers.attributes import attribute_report, ranking
from sr_dist.evaluation.classifiers.classifier_answers import NOT_FINITE, NOT_KNOWN, NamedClassifier, accuracy, correct
from sr_dist.evaluation.metric_set import open_metrics
from sr_dist.evaluation.protocol import protocol
from sr_dist.evaluation.report.attribute_tables import tables
from sr_dist.evaluation.report.markdown import markdown
from sr_dist.evaluation.scoring import Scoring, score
from sr_dist.models import trained
from sr_dist.recipe.labels import Labels

CPU = torch.device("cpu")
FACTS = Labels("attributes", ("Male", "Smiling"))
DIGITS = Labels("class", tuple("0123456"))
TRUTH = [[1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0]]  # Male, Smiling
PREDICTED = {
    "HR": [[1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 1]],
    "bicubic": [[1, 0, 0, 0, 0, 0, 1, 1], [1, 1, 0, 0, 0, 0, 0, 1]],
    "mine": [[1, 1, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0, 0]],
}


def answers(truth, predicted, above=None):
    truth, predicted = np.array(truth).T, np.array(predicted).T
    above = (truth != predicted).astype(int) if above is None else np.array(above).T
    return Answers(
        [f"image{i}" for i in range(len(truth))], truth, predicted, np.full(truth.shape, 0.9), np.full(truth.shape, 0.1), above
    )


def named_classifier(labels=FACTS, name="facts", classify=None):
    return NamedClassifier(name, labels, classify, {"weights": "k.safetensors", "sha256": "0" * 64, "size": 8, "channels": 3})


def all_answers(truth=TRUTH):
    return {"facts": {method: answers(truth, predicted) for method, predicted in PREDICTED.items()}}


@pytest.fixture
def heads():
    return attribute_report([named_classifier()], all_answers())["facts"]["heads"]


def test_counts_of_every_method_by_hand(heads):
    """Without first: Male of mine is TN 3, FP 1, FN 2, TP 2."""
    mine = heads["Male"]["methods"]["mine"]
    assert mine["confusion"] == [[3, 1], [2, 2]] and mine["accuracy"] == 5 / 8
    assert mine["per_class"] == {"without": {"n": 4, "accuracy": 3 / 4}, "with": {"n": 4, "accuracy": 1 / 2}}
    assert mine["balanced_accuracy"] == 5 / 8
    assert heads["Smiling"]["methods"]["mine"]["balanced_accuracy"] == 1 / 2  # 6 of 8 are right, and nobody smiles any more
    assert [heads["Male"]["methods"][method]["accuracy"] for method in PREDICTED] == [7 / 8, 3 / 8, 5 / 8]


def test_agreement_needs_no_truth(heads):
    assert heads["Male"]["methods"]["mine"]["agreement"]["share"] == 6 / 8
    assert heads["Male"]["methods"]["HR"]["agreement"] is None
    unknown = attribute_report([named_classifier()], all_answers([[-1] * 8] * 2))["facts"]["heads"]["Male"]
    assert unknown["methods"]["mine"]["agreement"] == heads["Male"]["methods"]["mine"]["agreement"]
    assert (unknown["methods"]["mine"]["accuracy"], unknown["methods"]["mine"]["against_hr"], unknown["n"]) == (None, None, 0)
    assert unknown["missing"] == NOT_KNOWN


def test_methods_are_paired_with_hr_and_with_each_other(heads):
    """Male: HR is right of all but image 3; mine loses 2 and 7; bicubic loses 1, 2, 6 and 7."""
    against = heads["Male"]["methods"]["mine"]["against_hr"]
    assert (against["n"], against["only_first"], against["only_second"], against["difference"]) == (8, 2, 0, -2 / 8)
    assert against["p"] == pytest.approx(binomtest(2, 2).pvalue) == 0.5
    assert list(heads["Male"]["pairs"]) == ["mine - bicubic"]
    pair = heads["Male"]["pairs"]["mine - bicubic"]
    assert (pair["only_first"], pair["only_second"], pair["difference"]) == (0, 2, 2 / 8)


def test_images_of_unknown_truth_count_only_in_agreement():
    truth = [[1, 1, 1, 1, 0, 0, 0, -1], TRUTH[1]]
    male = attribute_report([named_classifier()], all_answers(truth))["facts"]["heads"]["Male"]
    assert (male["images"], male["n"], male["methods"]["mine"]["agreement"]["n"]) == (8, 7, 8)
    assert male["methods"]["mine"]["accuracy"] == 5 / 7 and male["methods"]["mine"]["against_hr"]["only_first"] == 1


def test_heads_are_ranked_by_lost_accuracy():
    """mine loses 2 of 8 of Male (7/8 to 5/8) and 1 of 8 of Smiling (7/8 to 6/8); bicubic 4 of Male and nothing of Smiling."""
    ranked = ranking(attribute_report([named_classifier()], all_answers()), ["bicubic", "mine"])
    assert [(entry["head"], entry["drop"]) for entry in ranked["mine"]] == [("Male", 2 / 8), ("Smiling", 1 / 8)]
    assert [(entry["head"], entry["drop"]) for entry in ranked["bicubic"]] == [("Male", 4 / 8), ("Smiling", 0)]
    male = ranked["mine"][0]
    assert (male["hr"], male["sr"], male["n"], male["p"]) == (7 / 8, 5 / 8, 8, 0.5)
    assert male["low"] < 2 / 8 < male["high"]
    turned = {"facts": {**all_answers()["facts"], "mine": answers(TRUTH, PREDICTED["mine"][::-1])}}
    assert ranking(attribute_report([named_classifier()], turned), ["mine"])["mine"][0]["drop"] > 2 / 8


def test_top_five_exists_for_more_than_five_classes():
    """Six images of seven classes; the last list counts the answers that are more probable than the truth."""
    predicted = answers([[0, 1, 2, 3, 4, -1]], [[0, 1, 0, 0, 0, 0]], [[0, 0, 1, 4, 5, 0]])
    seven, five = named_classifier(DIGITS, "k"), named_classifier(Labels("class", tuple("abcde")), "k")
    assert seven.columns == {"top1_k": 1, "top5_k": 5} and five.columns == {"top1_k": 1}
    assert named_classifier().columns == {"accuracy_facts": 1}
    assert correct(predicted, 5)[:, 0].tolist() == [True, True, True, True, False, False]
    assert (accuracy(predicted, 1), accuracy(predicted, 5)) == (2 / 5, 4 / 5)  # of five images the class is known
    head = attribute_report([seven], {"k": {"HR": predicted}})["k"]["heads"]["class"]
    assert (head["methods"]["HR"]["top5"], head["methods"]["HR"]["accuracy"]) == (4 / 5, 2 / 5)


def test_the_tables_have_the_studys_layout():
    attributes = attribute_report([named_classifier()], all_answers())
    ranked = ranking(attributes, ["bicubic", "mine"])
    lost, male, smiling, pairs = tables(attributes, ranked, ["bicubic", "mine"], ["mine - bicubic"])
    assert [row[0].text for row in lost.rows] == ["Male", "Smiling"] and lost.columns[-2:] == ["bicubic", "mine"]
    assert [cell.value for cell in lost.rows[0][-2:]] == [4 / 8, 2 / 8]
    assert male.columns[:6] == ["method", "TP", "TN", "FP", "FN", "accuracy, %"]
    assert [cell.text for cell in male.rows[2]][:5] == ["mine", "2", "3", "1", "2"]
    assert male.rows[2][5].text.startswith("62.50 [")
    assert male.note.startswith(
        "n 8 (4 without, 4 with). On HR, Male is biased: 100.0% of 'without' are correct, but 75.0% of 'with';"
    )
    assert [row[0].text for row in smiling.rows] == ["HR", "bicubic", "mine"]
    assert [[cell.text for cell in row][:4] for row in pairs.rows] == [
        ["facts", "Male", "mine - bicubic", "8"],
        ["facts", "Smiling", "mine - bicubic", "8"],
    ]


# ---- in the pass over images


def with_answers(finished_report, *methods):
    """A report with the answers of these tests; `methods` are the names of its methods."""
    keys = zip(["HR", *methods], ["HR", "bicubic", "mine"], strict=True)
    predicted = {name: answers(TRUTH, PREDICTED[key]) for name, key in keys}
    scores = replace(finished_report.scores, answers={"facts": predicted})
    return replace(finished_report, scores=scores, metrics=replace(finished_report.metrics, classifiers=(named_classifier(),)))


def test_report_json_and_markdown_have_it_all():
    values = dict.fromkeys(METRICS.better, 20.0)
    test = Portion(split=(0.7, 0.15, 0.15), part=2)
    plain = replace(table(bicubic=values, mine=values), portion=test, sources={"mine": {}})
    finished_report = with_answers(plain, "bicubic", "mine")
    tree = json.loads(json.dumps(finished_report.tree(), allow_nan=False))
    assert tree["attributes"]["facts"]["heads"]["Male"]["methods"]["mine"]["confusion"] == [[3, 1], [2, 2]]
    assert tree["attributes"]["facts"]["labels"] == {"kind": "attributes", "names": ["Male", "Smiling"]}
    assert [entry["head"] for entry in tree["ranking"]["mine"]] == ["Male", "Smiling"]
    assert tree["portion"] == {"select": {}, "split": [0.7, 0.15, 0.15], "part": "test"}
    text = markdown(finished_report)
    assert "1 image of d (the test part of [0.7, 0.15, 0.15] by content hash)" in text
    assert "| mine | 2 | 3 | 1 | 2 | 62.50 [" in text and "| facts | Male | mine - bicubic | 8 | +25.00 [" in text
    assert "McNemar's exact test" in text


@pytest.fixture
def photo_classifier(photo_shards, tmp_path):
    """A classifier of the shards' classes."""
    network = trained.open_classifier(finished(tmp_path / "k.safetensors", Labels("class", ("boats", "cats", "dunes")), 16), "x")
    return named_classifier(network.labels, "k", network)


def scored(source, one, methods):
    images = open_images(str(source))
    batches = Batches(images, 2, bicubic.build(bicubic.Config(), 2), 2)
    metrics = open_metrics(["psnr"], CPU, classifiers=[one])
    return score(methods, batches, Scoring(protocol("matlab-y", 2), metrics, CPU)), images


def test_classifiers_see_images_as_a_file_stores_them(photo_classifier, photo_shards):
    """HR is classified as it is stored; a method's output is clipped and rounded first."""
    flat = {"flat": lambda lr: torch.full((len(lr), 3, 2 * lr.shape[2], 2 * lr.shape[3]), 100.4 / 255)}
    scores, images = scored(photo_shards, photo_classifier, flat)
    original = scores.answers["k"]["HR"]
    for i in range(0, 24, 5):
        hr, _, label = images.load(i)
        hr = hr[:, : hr.shape[1] // 2 * 2, : hr.shape[2] // 2 * 2]
        chances = photo_classifier.classify(hr[None].float() / 255).double().softmax(1)[0]
        assert (original.truth[i, 0], original.predicted[i, 0]) == (label, int(chances.argmax()))
        assert original.confidence[i, 0] == pytest.approx(float(chances.max()), abs=1e-6)
        stored = photo_classifier.classify(torch.full((1, 3, *hr.shape[1:]), 100 / 255)).double().softmax(1)[0]
        assert scores.answers["k"]["flat"].confidence[i, 0] == pytest.approx(float(stored.max()), abs=1e-6)


def test_rows_have_the_answers_so_that_everything_can_be_counted_again(photo_classifier, photo_shards):
    scores, images = scored(photo_shards, photo_classifier, methods_for(2, "mine"))
    assert [row["method"] for row in scores.rows].count("HR") == len(images.names)
    for method in ("HR", "bicubic", "mine"):
        entries = [row["answers"]["k"]["class"] for row in scores.rows if row["method"] == method]
        is_correct = [one["truth"] == one["said"] for one in entries]
        assert is_correct == [one["place"] == 1 for one in entries]
        assert is_correct == [row["top1_k"] == 1 for row in scores.rows if row["method"] == method]
        assert scores.accuracies["top1_k"][method] == sum(is_correct) / len(is_correct)
    assert scores.means("mine")["top1_k"] == scores.accuracies["top1_k"]["mine"]
    json.dumps(scores.rows, allow_nan=False)


def test_only_the_rank_that_writes_rows_adds_the_answers(photo_classifier, photo_shards, monkeypatch):
    first, _ = scored(photo_shards, photo_classifier, methods_for(2))
    monkeypatch.setattr("sr_dist.core.ranks.is_first", lambda: False)
    other, images = scored(photo_shards, photo_classifier, methods_for(2))
    assert [row["method"] for row in other.rows].count("HR") == 0 and not any("answers" in row for row in other.rows)
    stored = {"image", "method", "psnr_y"}
    ours = [{key: value for key, value in row.items() if key in stored} for row in first.rows[len(images.names) :]]
    assert [{key: value for key, value in row.items() if key in stored} for row in other.rows] == ours
    assert other.accuracies == first.accuracies


def test_a_method_that_breaks_an_image_is_not_classified_and_the_others_are(photo_classifier, photo_shards):
    broken = {**methods_for(2), "broken": lambda lr: torch.full((len(lr), 3, 2 * lr.shape[2], 2 * lr.shape[3]), float("nan"))}
    scores, _ = scored(photo_shards, photo_classifier, broken)
    assert scores.missing["broken/top1_k"] == NOT_FINITE and scores.means("broken")["top1_k"] is None
    assert scores.means("bicubic")["top1_k"] is not None and "broken" not in scores.answers["k"]
    assert "broken" not in attribute_report([photo_classifier], scores.answers)["k"]["heads"]["class"]["methods"]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_a_users_mistake(photo_classifier, photo_shards, wrong):
    """The images are finite, so the weights must be damaged."""
    diverged = replace(photo_classifier, classify=lambda images: torch.full((len(images), 3), wrong))
    with pytest.raises(
        UserError, match=r"^attributes: 'k' returns logits that are not finite; its weights are damaged or diverged$"
    ):
        scored(photo_shards, diverged, methods_for(2))


def test_a_folder_without_labels_has_agreement_and_says_why_no_accuracy(photo_classifier, tmp_path):
    for i in range(3):
        store(tmp_path / "images" / f"{i}.png", seed=i)
    metrics = open_metrics(["psnr"], CPU, classifiers=[photo_classifier])
    scores = score(methods_for(2), batches_of(tmp_path / "images"), Scoring(protocol("matlab-y", 2), metrics, CPU))
    assert scores.missing == {"top1_k": NOT_KNOWN} and scores.means("bicubic")["top1_k"] is None
    assert [row["answers"]["k"]["class"]["truth"] for row in scores.rows] == [None] * 12
    head = attribute_report([photo_classifier], scores.answers)["k"]["heads"]["class"]
    assert head["methods"]["bicubic"]["agreement"]["n"] == 3 and head["n"] == 0
    (only,) = tables({"k": {"heads": {"class": head}}}, ranking({}, ["bicubic"]), ["bicubic"], [])
    assert only.note == f"n 3. No accuracy: {NOT_KNOWN}."
