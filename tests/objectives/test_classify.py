"""The classifier's objective beside its formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from batches import against

from sr_dist.core import plugins
from sr_dist.core.errors import UserError
from sr_dist.data import data_checks
from sr_dist.losses.classification import balancing
from sr_dist.recipe import checks

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.3, -2.0], [1.0, 1.5, 1.0], [-0.5, 0.0, 0.25]])


def losses(batch, logits, **options):
    module, config = plugins.resolve("sr_dist.objectives", "classify", options, "objective")
    terms = module.Objective(config).classifier_loss(None, batch, logits)
    return terms["cross_entropy"], terms["accuracy"].value.item()


def a_batch(label=(2, 0, 1, 2), **facts):
    return against(torch.rand(4, 3, 8, 8), list(label), **facts)


def test_classes_are_a_softmax():
    rows = np.exp(LOGITS.numpy()) / np.exp(LOGITS.numpy()).sum(1, keepdims=True)
    expected = -np.log([rows[0, 2], rows[1, 0], rows[2, 1], rows[3, 2]])
    loss, right = losses(a_batch(), LOGITS)
    assert loss.item() == pytest.approx(expected.mean(), rel=1e-6)
    assert right == 2 / 4  # it predicts 0, 1, 1, 2
    assert losses(a_batch((2, -1, 1, -1)), LOGITS)[0].item() == pytest.approx((expected[0] + expected[2]) / 4, rel=1e-6)


def test_attributes_are_a_sigmoid_each():
    male, smiling = np.array([1, 0, 0, 1]), np.array([0, 0, 1, 1])
    probability = 1 / (1 + np.exp(-LOGITS[:, :2].numpy().astype(np.float64)))
    expected = -np.mean([male * np.log(probability[:, 0]) + (1 - male) * np.log(1 - probability[:, 0]),
                         smiling * np.log(probability[:, 1]) + (1 - smiling) * np.log(1 - probability[:, 1])])  # fmt: skip
    loss, right = losses(a_batch(Smiling=smiling, Male=male), LOGITS[:, :2], labels="Male,Smiling")
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    predicted = LOGITS[:, :2].numpy() > 0
    assert right == np.mean(predicted == np.stack([male, smiling], 1))


def test_the_gradient_is_the_probability_minus_the_label():
    logits = LOGITS.clone().requires_grad_()
    losses(a_batch(), logits)[0].backward()
    expected = (LOGITS.softmax(1) - torch.eye(3)[[2, 0, 1, 2]]) / 4
    torch.testing.assert_close(logits.grad, expected)


@pytest.mark.parametrize("shares", [(0.5, 0.25, 0.25), (0.8, 0.1, 0.1)])
def test_under_balancing_weights_every_class_counts_the_same(shares):
    """Of 20 images in these shares, each class's weights add up to 20 / 3."""
    target = torch.repeat_interleave(torch.arange(3), torch.tensor([round(20 * share) for share in shares]))
    weights = balancing(target, shares)
    assert weights.mean().item() == pytest.approx(1)
    assert [weights[target == i].sum().item() for i in range(3)] == pytest.approx([20 / 3] * 3)


def test_under_balancing_weights_having_and_lacking_count_the_same():
    target = torch.tensor([[1.0, 1.0]] * 2 + [[0.0, 1.0]] * 6 + [[0.0, 0.0]] * 2)
    weights = balancing(target, (0.2, 0.8))
    for column, facts in zip(weights.T, target.T, strict=True):
        assert column[facts == 1].sum().item() == pytest.approx(5) and column[facts == 0].sum().item() == pytest.approx(5)


def test_balance_weighs_the_loss():
    plain = [losses(a_batch(), LOGITS[i : i + 1].repeat(4, 1))[0].item() for i in range(4)]
    shares = (0.2, 0.3, 0.5)
    label = torch.tensor([2, 0, 1, 2])
    each = torch.nn.functional.cross_entropy(LOGITS, label, reduction="none")
    expected = (each / (3 * torch.tensor(shares)[label])).mean().item()
    loss = losses(a_batch(), LOGITS, balance="weights", shares=shares)[0].item()
    assert loss == pytest.approx(expected, rel=1e-6) and loss not in plain


# ---- recipes


CLASSIFIER = {"scale": 1, "generator": None, "classifier": {"name": "digit_cnn", "size": 16},
              "objective": {"name": "classify", "content": None},
              "data": {"degradation": {"name": "identity"}, "split": [0.5, 0.25, 0.25]}}  # fmt: skip


@pytest.fixture
def classifier(write_recipe):
    def load(options=None, **changes):
        import yaml

        path = write_recipe(**{**CLASSIFIER, **changes})
        tree = yaml.safe_load(path.read_text())
        tree["objective"] = {"name": "classify", **changes.get("objective", {})}
        path.write_text(yaml.safe_dump(tree))
        return data_checks.load(path, options or {})

    return load


def test_outputs_and_shares_come_from_the_shards(classifier):
    loaded = checks.complete(classifier({"data.split": "[]"}, objective={"balance": "weights"}))
    assert loaded.classifier.options["outputs"] == 3 and loaded.channels == 3
    assert len(loaded.objective.options["shares"]) == 3 and sum(loaded.objective.options["shares"]) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (
            {"objective.labels": "[Male]"},
            r"^objective\.labels: the shards in .* have no attribute 'Male'; they have no attributes$",
        ),
        ({"classifier.outputs": "5"}, r"^classifier\.outputs: 5, but objective\.labels are 3 classes; leave it out, or say 3$"),
        ({"classifier": "none"}, r"^generator: this key is missing \(or classifier"),
        (
            {"keep.best": "balanced"},
            r"^keep\.best: 'balanced' is not a column of the metrics accuracy, balanced_accuracy; did you mean",
        ),
        ({"data.split": "[0.98, 0.01, 0.01]"}, r"^data\.split: no sample of '.*' falls into part [23] of"),
    ],
)
def test_contradictions_are_refused_before_torch(classifier, options, complaint):
    with pytest.raises(UserError, match=complaint):
        classifier(options)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"scale": "2"}, r"^scale: 2, but a classifier sees images in their own size; say 1$"),
        ({"classifier.size": "20"}, r"^classifier\.size: the dense layer fits images of 20, but data\.crop is 16"),
        ({"objective": "{name: pixel}"}, r"^generator: the objective 'pixel' trains one; name it, such as \{name: rrdb\}$"),
        ({"generator": "{name: srcnn}"}, r"^generator: the objective 'classify' trains none; leave the section out$"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused(classifier, options, complaint):
    with pytest.raises(UserError, match=complaint):
        checks.complete(classifier(options))
