"""Charbonnier, total variation, LPIPS, and VGG as in Real-ESRGAN."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torchvision
from batches import against
from torch import nn

from sr_dist.core import catalogue, plugins
from sr_dist.core.errors import UserError
from sr_dist.core.files import sha256
from sr_dist.data import data_checks
from sr_dist.losses.content import charbonnier, lpips, tv, vgg
from sr_dist.losses.content_terms import ContentTerms
from sr_dist.models.pretrained import MissingWeights
from sr_dist.recipe import checks


def build(name, **options):
    module, config = plugins.resolve("sr_dist.losses.content", name, options, f"objective.content.{name}")
    return module.build(config)


def pair(size=32):
    draw = torch.Generator().manual_seed(1)
    return torch.rand(2, 3, size, size, generator=draw), torch.rand(2, 3, size, size, generator=draw)


def test_charbonnier_by_hand():
    """sqrt(0.03^2 + 0.04^2) = 0.05"""
    sr, hr = torch.tensor([[0.53, 0.5]]), torch.tensor([[0.5, 0.5]])
    assert build("charbonnier", eps="0.04")(sr, against(hr)).item() == pytest.approx((0.05 + 0.04) / 2, rel=1e-5)
    assert charbonnier.Config().eps == 1e-3


def test_charbonniers_gradient_is_finite_where_the_images_are_equal():
    sr = torch.full((1, 3, 4, 4), 0.5, requires_grad=True)
    build("charbonnier")(sr, against(torch.full((1, 3, 4, 4), 0.5))).backward()
    assert sr.grad.abs().max() == 0


def test_total_variation_by_hand():
    """Down: |0.5 - 0| and |1 - 0.25|; across: |0.25 - 0| and |1 - 0.5|."""
    sr = torch.tensor([[[[0.0, 0.25], [0.5, 1.0]]]])
    assert tv.build(tv.Config())(sr, against(torch.rand(1, 1, 2, 2))).item() == pytest.approx((0.5 + 0.75) / 2 + (0.25 + 0.5) / 2)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 1)])
def test_total_variation_of_a_line_or_a_point_is_finite(size):
    value = build("tv")(torch.rand(1, 3, *size), against(torch.rand(1, 3, *size)))
    assert value.isfinite() and (value > 0) == (size != (1, 1))


def test_real_esrgans_vgg_term_is_five_layers_before_activation():
    layers = {"conv1_2": "0.1", "conv2_2": "0.1", "conv3_4": "1", "conv4_4": "1", "conv5_4": "1"}
    term = build("vgg", layers=layers, activated="false", distance="l1", divide="1", weights="random")
    assert list(term.taps.values()) == [0.1, 0.1, 1, 1, 1]
    assert all(isinstance(term.features[place], nn.Conv2d) for place in term.taps)
    assert max(vgg._places(False).values()) == 34  # features.34, the 16th convolution
    sr, hr = pair()
    single = [build_same(term, layer)(sr, against(hr)).item() * float(weight) for layer, weight in layers.items()]
    assert term(sr, against(hr)).item() == pytest.approx(sum(single), rel=1e-5)


def build_same(term, layer):
    """The same network, one layer of it."""
    alone = build("vgg", layers=layer, activated="false", distance="l1", divide="1", weights="random")
    alone.features.load_state_dict({k: v for k, v in term.features.state_dict().items() if k in alone.features.state_dict()})
    return alone


# ---- LPIPS


@pytest.fixture
def weights_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SR_DIST_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_is_the_packages(net):
    from lpips import LPIPS

    term, package = build("lpips", net=net, weights="random"), LPIPS(net=net, pnet_rand=True, verbose=False)
    package.net.load_state_dict(term.features.state_dict())
    sr, hr = pair(40)
    with torch.no_grad():
        expected = package(2 * sr - 1, 2 * hr - 1).mean()
    assert term(sr, against(hr)).item() == pytest.approx(expected.item(), rel=1e-5)
    assert expected > 1e-4


def test_lpips_of_a_flat_image_has_a_finite_gradient():
    """The package divides by the root of zero where all features at a position are zero."""
    term, sr = build("lpips", weights="random"), torch.zeros(1, 3, 32, 32, requires_grad=True)
    with torch.no_grad():
        for name, parameter in term.features.named_parameters():
            if name.endswith("bias"):
                parameter.fill_(-10.0)
    term(sr, against(torch.ones(1, 3, 32, 32))).backward()
    assert sr.grad.isfinite().all()


def test_lpips_is_frozen_and_takes_grey_images():
    term = build("lpips", weights="random").train()
    sr, hr = torch.rand(1, 1, 31, 40, requires_grad=True), torch.rand(1, 1, 31, 40)
    value = term(sr, against(hr))
    value.backward()
    assert sr.grad.abs().max() > 0
    assert not any(p.requires_grad for p in term.parameters()) and not any(m.training for m in term.modules())
    assert value.item() == pytest.approx(term(sr.expand(-1, 3, -1, -1), against(hr.expand(-1, 3, -1, -1))).item(), rel=1e-5)


def test_lpips_refuses_small_images_before_and_in_training(write_recipe):
    with pytest.raises(UserError, match=r"^objective\.content\.lpips: needs images of 31 pixels or more, not 30 x 64$"):
        build("lpips", weights="random")(torch.rand(1, 3, 30, 64), against(torch.rand(1, 3, 30, 64)))
    path = write_recipe(objective={"name": "pixel", "content": {"lpips": {"weights": "random"}}})
    with pytest.raises(UserError, match=r"^objective\.content\.lpips: .* but data\.crop is 16$"):
        checks.complete(data_checks.load(path, {}))
    checks.complete(data_checks.load(path, {"data.crop": "32"}))


@pytest.mark.parametrize(("net", "file"), [("alex", "alexnet-owt-7be5be79.pth"), ("vgg", "vgg16-397923af.pth")])
def test_lpips_needs_its_published_file_and_does_not_download_it_by_itself(weights_folder, net, file):
    assert lpips.files(lpips.Config(net=net)) == [file]
    assert lpips.files(lpips.Config(net=net, weights="random")) == []
    assert catalogue.weights_file(file).address == f"https://download.pytorch.org/models/{file}"
    with pytest.raises(MissingWeights, match=rf"^objective\.content\.lpips: the weights file '{file}' is missing") as told:
        build("lpips", net=net)
    assert str(told.value).endswith("; objective.content.lpips=none trains without it")


def test_lpips_loads_torchvisions_file(weights_folder, monkeypatch):
    existing = torchvision.models.alexnet(weights=None).features.state_dict()
    torch.save({f"features.{name}": value for name, value in existing.items()}, weights_folder / "plain.pth")
    name = f"alexnet-{sha256(weights_folder / 'plain.pth')[:8]}.pth"
    (weights_folder / "plain.pth").rename(weights_folder / name)
    monkeypatch.setitem(lpips.FILES, "alex", name)
    actual = build("lpips").features.state_dict()
    assert len(actual) == len(existing) == 10
    assert all(torch.equal(value, existing[key.split(".", 1)[1]]) for key, value in actual.items())
    (weights_folder / "short.pth").write_bytes(b"no weights")
    monkeypatch.setitem(lpips.FILES, "alex", "short.pth")
    with pytest.raises(UserError, match=r"^objective\.content\.lpips: '.*short\.pth' is no file of alex weights: .") as refusal:
        build("lpips")
    assert "\n" not in str(refusal.value)


def test_the_trained_layers_of_lpips_come_with_the_package():
    """Non-negative, as published: random ones would not be."""
    term = build("lpips", weights="random")
    weights = torch.cat([p.flatten() for p in term.lins.parameters()])
    assert len(weights) == 64 + 192 + 384 + 256 + 256 and weights.min() >= 0 and math.isfinite(weights.sum())


def test_a_sharpened_target_is_for_the_terms_that_ask_for_it(make_photo):
    from sr_dist.core.sharpen import sharpened  # beside its use

    hr = torch.from_numpy(make_photo(1, 64, 64)).permute(2, 0, 1)[None].float() / 255
    values = ContentTerms({"l1": {"weight": 1.0, "sharpen": True}, "mse": 1.0})(hr, against(hr))
    assert values["l1"].item() == pytest.approx((sharpened(hr) - hr).abs().mean().item()) and values["l1"] > 1e-3
    assert values["mse"] == 0


def test_a_weight_by_step_follows_the_batch():
    """{10: 1, 20: 0}: 0.4 at step 16 of a difference of 0.5. Its gradient is there also where the weight is 0."""
    sr = torch.full((1, 3, 4, 4), 0.5, requires_grad=True)
    terms, batch = ContentTerms({"l1": {10: 1.0, 20: 0.0}}), against(torch.zeros(1, 3, 4, 4))
    values = [terms(sr, dataclasses.replace(batch, step=step))["l1"] for step in (1, 10, 16, 20, 99)]
    assert [value.item() for value in values] == pytest.approx([0.5, 0.5, 0.2, 0, 0])
    values[-1].backward()
    assert sr.grad.abs().max() == 0


def test_a_term_that_is_none_needs_no_weights_file(write_recipe, monkeypatch, tmp_path):
    """`--objective.content.vgg=none` trains without VGG19 where a recipe has it."""
    monkeypatch.setenv("SR_DIST_WEIGHTS", str(tmp_path))
    path = write_recipe(objective={"name": "pixel", "content": {"l1": "1", "vgg": {"weight": "1"}}})
    assert len(list(checks.content_terms(data_checks.load(path, {})))) == 2
    recipe = checks.complete(data_checks.load(path, {"objective.content.vgg": "none"}))
    assert list(recipe.objective.options["content"]) == ["l1"]
    again = checks.complete(data_checks.load(path, {"objective.content": "{l1: {0: 1, 50: 0.5}}"}))
    assert again.objective.options["content"]["l1"]["weight"] == {0: 1.0, 50: 0.5}
