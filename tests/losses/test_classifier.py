"""The classifier term: its values, its readings, and the gradient that reaches sr."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from batches import against
from finished import finished

from sr_dist.core import plugins
from sr_dist.core.batch import Reading
from sr_dist.core.errors import UserError
from sr_dist.data import data_checks
from sr_dist.losses.content import classifier as term
from sr_dist.losses.content_terms import ContentTerms
from sr_dist.models import trained
from sr_dist.models.metadata import generator_metadata
from sr_dist.recipe import checks
from sr_dist.recipe.labels import Labels
from sr_dist.training import needed_files

CLASSES = Labels("class", ("boats", "cats", "dunes"))
FACTS = Labels("attributes", ("Male", "Smiling"))


def build(*runs, **options):
    module, config = plugins.resolve("sr_dist.losses.content", "classifier", {"runs": list(runs), **options}, term.KEY)
    return module.build(config)


def pair(channels=3, size=8):
    draw = torch.Generator().manual_seed(4)
    return torch.rand(4, channels, size, size, generator=draw).requires_grad_(), torch.rand(
        4, channels, size, size, generator=draw
    )


@pytest.fixture
def by_class(tmp_path):
    return finished(tmp_path / "animals.safetensors", CLASSES)


@pytest.fixture
def by_attributes(tmp_path):
    return finished(tmp_path / "faces.safetensors", FACTS, seed=1)


def softmax_loss(logits, labels):
    """-log of the true class's probability, per image."""
    rows = logits.detach().numpy().astype(np.float64)
    return np.array([np.log(np.exp(row).sum()) - row[label] for row, label in zip(rows, labels, strict=True)])


def binary_loss(logits, facts):
    chance = 1 / (1 + np.exp(-logits.detach().numpy().astype(np.float64)))
    return -np.where(np.array(facts) == 1, np.log(chance), np.log(1 - chance)).mean(1)


def test_for_classes_it_is_the_difference_of_two_cross_entropies(by_class):
    (sr, hr), labels = pair(), [2, 0, 1, 1]
    network = trained.open_classifier(by_class, "x").network
    expected_sr, expected_hr = softmax_loss(network(sr), labels).mean(), softmax_loss(network(hr), labels).mean()
    value, readings = build(by_class)(sr, against(hr, labels))
    assert value.item() == pytest.approx(expected_sr - expected_hr, rel=1e-4)
    actual = {name: reading.value.item() for name, reading in readings.items()}
    right = (network(sr).argmax(1) == torch.tensor(labels)).float().mean().item()
    assert actual == pytest.approx(
        {"animals_sr": expected_sr, "animals_hr": expected_hr, "animals_difference": value.item(), "animals_accuracy": right},
        rel=1e-4,
    )


def test_for_attributes_it_is_the_mean_over_them(by_attributes):
    sr, hr = pair()
    male, smiling = [1, 0, 1, 0], [0, 0, 1, 1]
    network = trained.open_classifier(by_attributes, "x").network
    facts = list(zip(male, smiling, strict=True))
    expected = (binary_loss(network(sr), facts) - binary_loss(network(hr), facts)).mean()
    value, _ = build(by_attributes)(sr, against(hr, Smiling=smiling, Young=[1, 1, 1, 1], Male=male))  # by name, in any order
    assert value.item() == pytest.approx(expected, rel=1e-4)


def test_several_classifiers_add_up(by_class, by_attributes):
    sr, hr = pair()
    batch = against(hr, [2, 0, 1, 1], Male=[1, 0, 1, 0], Smiling=[0, 0, 1, 1])
    both, readings = build(by_class, by_attributes)(sr, batch)
    assert both.item() == pytest.approx(sum(build(run)(sr, batch)[0].item() for run in (by_class, by_attributes)), rel=1e-5)
    assert {"animals_sr", "animals_hr", "faces_sr", "faces_difference"} <= set(readings)
    again = build(by_class, by_class)(sr, batch)[1]
    assert {"animals_sr", "animals_1_sr"} <= set(again)


def test_the_gradient_is_that_of_the_first_part_and_lowers_it(by_class):
    (sr, hr), labels = pair(), [2, 0, 1, 1]
    value, _ = build(by_class)(sr, against(hr, labels))
    (gradient,) = torch.autograd.grad(value, sr)
    network = trained.open_classifier(by_class, "x").network
    (expected,) = torch.autograd.grad(F.cross_entropy(network(sr), torch.tensor(labels)), sr)
    torch.testing.assert_close(gradient, expected)
    assert gradient.abs().max() > 1e-6
    moved = sr.detach() - 1e-3 * gradient / gradient.norm()
    assert build(by_class)(moved, against(hr, labels))[0] < value


def test_the_prediction_on_hr_can_be_the_target_and_then_no_labels_are_needed(by_class, by_attributes):
    sr, hr = pair()
    for run in (by_class, by_attributes):
        network = trained.open_classifier(run, "x").network
        text = network(hr).argmax(1).tolist() if run == by_class else (network(hr) > 0).int().tolist()
        loss = softmax_loss if run == by_class else binary_loss
        value, _ = build(run, target="prediction")(sr, against(hr))
        assert value.item() == pytest.approx((loss(network(sr), text) - loss(network(hr), text)).mean(), rel=1e-4)


def test_absolute_is_taken_of_every_image(by_class):
    (sr, hr), labels = pair(), [2, 0, 1, 1]
    network = trained.open_classifier(by_class, "x").network
    difference = softmax_loss(network(sr), labels) - softmax_loss(network(hr), labels)
    assert min(difference) < 0 < max(difference)
    value, _ = build(by_class, absolute=True)(sr, against(hr, labels))
    assert value.item() == pytest.approx(np.abs(difference).mean(), rel=1e-4)
    (gradient,) = torch.autograd.grad(value, sr)
    (plain,) = torch.autograd.grad(build(by_class)(sr, against(hr, labels))[0], sr)
    for i in range(4):
        torch.testing.assert_close(gradient[i], plain[i] * (1 if difference[i] > 0 else -1))


def test_images_without_a_class_add_nothing(by_class):
    sr, hr = pair()
    value, _ = build(by_class)(sr, against(hr, [2, -1, 1, -1]))
    (gradient,) = torch.autograd.grad(value, sr)
    assert [bool(g.abs().max() > 0) for g in gradient] == [True, False, True, False]


def test_with_weight_0_it_is_measured_and_has_no_gradient(by_class):
    (sr, hr), labels = pair(), [2, 0, 1, 1]
    text = ContentTerms({"l1": 1.0, "classifier": {"weight": 0, "runs": [by_class]}})(sr, against(hr, labels))
    assert text["classifier"].item() == 0 and not text["classifier"].requires_grad
    assert isinstance(text["classifier_animals_sr"], Reading) and text["classifier_animals_sr"].value > 0
    sum(value for value in text.values() if not isinstance(value, Reading)).backward()
    torch.testing.assert_close(sr.grad, (sr - hr).detach().sign() / sr.numel())
    with_it = ContentTerms({"classifier": {"weight": 0.5, "runs": [by_class]}})(sr, against(hr, labels))["classifier"]
    assert with_it.item() == pytest.approx(0.5 * build(by_class)(sr, against(hr, labels))[0].item())


@pytest.mark.parametrize("name", ["digit_cnn", "resnet18"])
def test_a_classifier_never_changes(name, tmp_path):
    """The term is in training mode and the network has batch normalization and dropout: same bits, same logits."""
    options = {"norm": "batch", "dropout": 0.5} if name == "digit_cnn" else {"stem": "small"}
    content = build(finished(tmp_path / "k.safetensors", CLASSES, name=name, **options))
    before = {key: value.clone() for key, value in content.state_dict().items()}
    assert any("running_mean" in key for key in before)
    (sr, hr), labels = pair(), [2, 0, 1, 1]
    values = []
    for _ in range(2):
        value, _ = content.train()(sr, against(hr, labels))
        value.backward()
        values.append(value.item())
    assert values[0] == values[1]
    assert all(torch.equal(value, before[key]) for key, value in content.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in content.parameters())
    assert not any(module.training for one in content.classifiers for module in one.modules())


def test_images_are_converted_to_the_size_and_channels_of_the_classifier(tmp_path):
    """Grey images become three equal channels, colour images become luma, larger images are resized."""
    colour = trained.open_classifier(finished(tmp_path / "colour.safetensors", CLASSES, size=8), "x")
    grey = trained.open_classifier(finished(tmp_path / "grey.safetensors", CLASSES, size=8, channels=1), "x")
    image = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(colour(image), colour(image.repeat(1, 3, 1, 1)))
    red_green_blue = torch.rand(2, 3, 8, 8)
    luma = 0.299 * red_green_blue[:, :1] + 0.587 * red_green_blue[:, 1:2] + 0.114 * red_green_blue[:, 2:]
    torch.testing.assert_close(grey(red_green_blue), grey(luma))
    flat = torch.full((1, 3, 16, 20), 0.25)
    torch.testing.assert_close(colour(flat), colour(torch.full((1, 3, 8, 8), 0.25)))
    large = torch.rand(1, 3, 16, 16, requires_grad=True)
    colour(large).square().sum().backward()
    assert (large.grad.abs() > 0).all()


# ---- refusals before training


def conditioned(write_recipe, *runs, **options):
    content = {"l1": 1.0, "classifier": {"weight": 0.1, "runs": list(runs), **options}}
    return checks.complete(data_checks.load(write_recipe(objective={"name": "pixel", "content": content}), {}))


def test_a_classifier_that_fits_the_shards_is_accepted(write_recipe, by_class):
    needed_files.find_weights(conditioned(write_recipe, by_class))


def test_classes_and_attributes_that_the_shards_lack_are_refused_by_name(write_recipe, by_attributes, tmp_path):
    with pytest.raises(
        UserError, match=r"runs: '.*faces\.safetensors': the shards in '.*' have no attribute 'Male'; they have no attributes"
    ):
        needed_files.find_weights(conditioned(write_recipe, by_attributes))
    other = finished(tmp_path / "digits.safetensors", Labels("class", ("one", "two")))
    with pytest.raises(
        UserError, match=r"the classifier distinguishes 2 classes \(one, two\), the shards in '.*' have 3 \(boats, cats, dunes\)"
    ):
        needed_files.find_weights(conditioned(write_recipe, other))
    needed_files.find_weights(conditioned(write_recipe, other, target="prediction"))  # which needs no labels


def test_other_files_are_refused_by_name(write_recipe, by_class, tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(UserError, match=r"classifier\.runs: names no classifier"):
        conditioned(write_recipe)
    with pytest.raises(
        UserError, match=r"no run folder or weights file '.*animal\.safetensors'; did you mean '.*animals\.safetensors'"
    ):
        needed_files.find_weights(conditioned(write_recipe, by_class.replace("animals", "animal")))
    save_file({"x": torch.zeros(1)}, tmp_path / "g.safetensors", generator_metadata({"name": "srcnn"}, 2))
    with pytest.raises(UserError, match=r"g\.safetensors' is not a weights file of a classifier"):
        needed_files.find_weights(conditioned(write_recipe, str(tmp_path / "g.safetensors")))
    with pytest.raises(UserError, match=r"animals\.safetensors' holds a classifier, not a generator"):
        trained.open_generator(by_class)
