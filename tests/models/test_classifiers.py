"""Every file of sr_dist/models/classifiers, new ones included. SMALL has options that make them small."""

from __future__ import annotations

import pytest
import torch
import torchvision
from finished import finished
from safetensors.torch import load_file, save_file
from torch import nn

from sr_dist.core import plugins
from sr_dist.core.errors import UserError
from sr_dist.core.files import sha256
from sr_dist.core.plugins import PACKAGES
from sr_dist.models import pretrained, trained
from sr_dist.models.classifiers import resnet18
from sr_dist.models.frozen_classifier import FrozenClassifier
from sr_dist.models.metadata import generator_metadata
from sr_dist.recipe.labels import Labels

PACKAGE = PACKAGES["classifier"]
SMALL = {
    "digit_cnn": {"widths": (4, 6, 8), "features": (8, 8), "size": 32},
    "resnet18": {"stem": "small"},
    "torchvision": {"arch": "squeezenet1_1"},
}
NAMES = plugins.names(PACKAGE)


def build(name, **options):
    torch.manual_seed(0)
    module, config = plugins.resolve(PACKAGE, name, {**SMALL.get(name, {}), **options}, "classifier")
    return module.build(config)


@pytest.mark.parametrize("name", NAMES)
def test_every_classifier_has_a_logit_per_output(name):
    for outputs in (1, 3):
        logits = build(name, outputs=outputs).eval()(torch.rand(2, 3, 32, 32))
        assert logits.shape == (2, outputs) and logits.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_grey_images_are_classified_too(name):
    assert build(name, outputs=2, channels=1).eval()(torch.rand(2, 1, 32, 32)).shape == (2, 2)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter_and_the_image(name):
    network, images = build(name, outputs=3), torch.rand(4, 3, 32, 32, requires_grad=True)
    network(images).square().sum().backward()
    assert images.grad.abs().max() > 0
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_in_evaluation_logits_depend_on_their_image_alone(name):
    network, images = build(name, outputs=3).eval(), torch.rand(3, 3, 32, 32)
    together = network(images)
    torch.testing.assert_close(torch.cat([network(images[i : i + 1]) for i in range(3)]), together, atol=1e-4, rtol=1e-3)


def test_the_digit_classifier_has_the_studys_layers():
    """3 x 3 convolutions 32, 64, 128 with biases and batch normalization; dense 128, 64, 10 on 128 planes of 7 x 7."""
    convolutions = sum(9 * inside * width + width + 2 * width for inside, width in ((3, 32), (32, 64), (64, 128)))
    dense = 128 * 49 * 128 + 128 + 128 * 64 + 64 + 64 * 10 + 10
    module, config = plugins.resolve(PACKAGE, "digit_cnn", {}, "classifier")
    assert sum(p.numel() for p in module.build(config).parameters()) == convolutions + dense == 905_546


def test_the_digit_classifier_in_its_authors_order():
    """Convolution, normalization, ReLU; then three times dropout, a dense layer, normalization and ReLU (not after the last)."""
    network = build("digit_cnn", form="author", dropout=0.25).train()
    widths, features = SMALL["digit_cnn"]["widths"], SMALL["digit_cnn"]["features"]
    sides = [3, *widths]
    layers: list[nn.Module] = []
    for number, (inside, outside) in enumerate(zip(sides, widths, strict=False)):
        layers += [nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if number else []
    layers += [nn.Flatten(), nn.Dropout(0.25), nn.Linear(widths[-1] * 8 * 8, features[0]), nn.BatchNorm1d(features[0]), nn.ReLU()]
    layers += [nn.Dropout(0.25), nn.Linear(*features), nn.BatchNorm1d(features[1]), nn.ReLU()]
    theirs = nn.Sequential(*layers, nn.Dropout(0.25), nn.Linear(features[1], 10))
    own = [getattr(network, name) for name in ("conv1", "conv2", "conv3")]
    modules = [module for layer in own for module in (layer.conv, layer.norm)]
    modules += [network.dense1, network.norm1, network.dense2, network.norm2, network.logits]
    with_tensors = [layer for layer in theirs if list(layer.parameters())]
    for layer, module in zip(with_tensors, modules, strict=True):
        layer.load_state_dict(module.state_dict())
    images = torch.rand(4, 3, 32, 32)
    torch.manual_seed(1)  # the same dropout
    expected = theirs(images * 2 - 1)
    torch.manual_seed(1)
    torch.testing.assert_close(network(images), expected)


def test_resnet18_is_torchvisions_after_imagenets_normalization():
    ours, theirs = build("resnet18", outputs=5, stem="imagenet").eval(), torchvision.models.resnet18(num_classes=5).eval()
    theirs.load_state_dict(ours.state_dict())  # strictly: the same names
    images = torch.rand(2, 3, 64, 48)
    mean, std = (torch.tensor(values)[:, None, None] for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    torch.testing.assert_close(ours(images), theirs((images - mean) / std))


def test_the_small_stem_keeps_the_size():
    network, sizes = build("resnet18", outputs=2).eval(), []
    network.layer1.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[-2:]))
    network(torch.rand(1, 3, 24, 20))
    assert sizes == [(24, 20)]


def test_an_unknown_torchvision_name_offers_the_nearest():
    with pytest.raises(UserError, match=r"^classifier\.arch: torchvision has no .* 'resnet19'; did you mean 'resnet18'\?$"):
        plugins.resolve(PACKAGE, "torchvision", {"arch": "resnet19"}, "classifier")
    one_answer = build("torchvision", arch="googlenet", outputs=2)(torch.rand(2, 3, 64, 64))
    assert one_answer.shape == (2, 2)  # in training too


# ---- published weights


def test_imagenets_weights_are_loaded_except_the_head_and_a_small_stem(monkeypatch, tmp_path):
    published = torchvision.models.resnet18(num_classes=1000)
    torch.save(published.state_dict(), tmp_path / "plain.pth")
    file = f"resnet18-{sha256(tmp_path / 'plain.pth')[:8]}.pth"
    (tmp_path / "plain.pth").rename(tmp_path / file)
    monkeypatch.setenv("SR_DIST_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(resnet18, "FILE", file)
    for stem, own in (("imagenet", {"fc.weight", "fc.bias"}), ("small", {"fc.weight", "fc.bias", "conv1.weight"})):
        actual, theirs = build("resnet18", outputs=2, stem=stem, weights="imagenet").state_dict(), published.state_dict()
        differing = {n for n, value in actual.items() if value.shape != theirs[n].shape or not torch.equal(value, theirs[n])}
        assert differing == own


def test_missing_imagenet_weights_are_named_and_not_downloaded_without_permission(monkeypatch, tmp_path):
    monkeypatch.setenv("SR_DIST_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(pretrained.MissingWeights, match=r"^classifier: the weights file 'resnet18-f37072fd\.pth' is missing"):
        build("resnet18", weights="imagenet")
    module, config = plugins.resolve(PACKAGE, "torchvision", {"arch": "resnet18", "weights": "imagenet"}, "classifier")
    assert module.files(config) == ["resnet18-f37072fd.pth"]
    (tmp_path / "resnet18-f37072fd.pth").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"is damaged or another file"):
        build("resnet18", weights="imagenet")


# ---- starting from trained classifiers


DIGITS, GLASSES = Labels("class", tuple("0123456789")), Labels("attributes", ("Eyeglasses",))


def started(path: str, **options) -> tuple[torch.nn.Module, str]:
    module, config = plugins.resolve(
        PACKAGE, "digit_cnn", {**SMALL["digit_cnn"], "norm": "none", "size": 8, **options}, "classifier"
    )
    torch.manual_seed(9)
    network = module.build(config)
    return network, trained.load_starting_weights(
        network, {"name": "digit_cnn", **config.model_dump()}, path, "classifier", "init.classifier"
    )


def test_another_number_of_outputs_starts_with_a_new_head_and_notes_it(tmp_path):
    path = finished(tmp_path / "digits.safetensors", DIGITS)
    theirs = load_file(path)
    network, note = started(path, outputs=1)
    differing = {name for name, value in network.state_dict().items() if not torch.equal(value, theirs[name])}
    assert differing == {"logits.weight", "logits.bias"}
    assert "its head (logits.bias, logits.weight) has another number of outputs and begins anew" in note
    network, note = started(path, outputs=10)
    assert all(torch.equal(value, theirs[name]) for name, value in network.state_dict().items()) and "head" not in note


def test_weights_of_other_shapes_are_refused(tmp_path):
    path = finished(tmp_path / "glasses.safetensors", GLASSES, widths=(4, 6, 10))
    with pytest.raises(UserError, match=r"^init\.classifier: '.*' does not fit: 0 tensors missing, .* 3 of another shape"):
        started(path, outputs=1)
    save_file({"x": torch.zeros(1)}, tmp_path / "g.safetensors", generator_metadata({"name": "srcnn"}, 2))
    with pytest.raises(UserError, match=r"holds a generator, not a classifier"):
        started(str(tmp_path / "g.safetensors"))


def test_resnet18_starts_from_torchvisions_own_file(tmp_path):
    torch.save({"state_dict": torchvision.models.resnet18(num_classes=7).state_dict()}, tmp_path / "theirs.pth")
    module, config = plugins.resolve(PACKAGE, "resnet18", {"outputs": 2}, "classifier")
    network = module.build(config)
    section = {"name": "resnet18", **config.model_dump()}
    note = trained.load_starting_weights(network, section, str(tmp_path / "theirs.pth"), "classifier", "init.classifier")
    assert "its head (fc.bias, fc.weight)" in note


def test_a_weights_file_states_its_labels_and_image_size(tmp_path):
    opened = trained.open_classifier(finished(tmp_path / "k.safetensors", GLASSES, size=12), "runs")
    assert (opened.labels, opened.size, opened.channels, opened.name) == (GLASSES, 12, 3, "k")


@pytest.mark.parametrize("name", NAMES)
def test_features_are_the_input_of_the_last_layer(name, tmp_path):
    network = build(name, outputs=3)
    opened = FrozenClassifier(network, name, tmp_path, Labels("class", ("a", "b", "c")), 32, 3)
    images = torch.rand(2, 3, 20, 24)
    features, last = opened.features(images), opened.last_layer
    assert features.ndim == 2 and features.isfinite().all() and not last._forward_pre_hooks
    if isinstance(last, torch.nn.Linear):
        torch.testing.assert_close(last(features), opened(images))
    else:  # squeezenet's is a convolution; features are the mean over positions
        assert features.shape == (2, last.in_channels)


def test_a_network_with_another_last_layer_is_no_extractor(tmp_path):
    opened = FrozenClassifier(build("digit_cnn", outputs=3), "k", tmp_path / "k", Labels("class", ("a", "b")), 32, 3)
    with pytest.raises(UserError, match=r"k' does not end in a dense or convolutional layer for 2 classes"):
        opened.features(torch.rand(1, 3, 32, 32))
