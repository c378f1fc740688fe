import io
import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from batches import against
from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from sr_dist.core import plugins
from sr_dist.core.errors import UserError
from sr_dist.core.files import sha256
from sr_dist.losses.content import l1, mse, vgg
from sr_dist.losses.content_terms import ContentTerms
from sr_dist.models.pretrained import MissingWeights

PACKAGE = "sr_dist.losses.content"
LAYERS = [f"conv{i}_{j}" for i, count in enumerate((2, 2, 4, 4, 4), 1) for j in range(1, count + 1)]


class ThinVGG19(nn.Module):
    """torchvision's VGG19 at a sixteenth of its width: the same modules in the same positions, in milliseconds."""

    def __init__(self, weights=None):
        super().__init__()
        assert weights is None  # the network comes from the file, never from torchvision's downloader
        self.features = make_layers([width if width == "M" else width // 16 for width in cfgs["E"]])
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)


@pytest.fixture
def thin(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(torchvision.models, "vgg19", ThinVGG19)


@pytest.fixture
def weights_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SR_DIST_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path


def build(**options):
    module, config = plugins.resolve(PACKAGE, "vgg", {"weights": "random", **options}, "objective.content.vgg")
    return module.build(config)


def phi(features, images, layer, activated):
    """Features at a layer, by counting convolutions and poolings on the way."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (images - mean[:, None, None]) / std[:, None, None]
    i, j = 1, 0
    for module in features:
        if isinstance(module, nn.MaxPool2d):
            x, i, j = F.max_pool2d(x, 2), i + 1, 0
        elif isinstance(module, nn.Conv2d):
            x, j = F.conv2d(x, module.weight, module.bias, padding=1), j + 1
            if f"conv{i}_{j}" == layer:
                return F.relu(x) if activated else x
            x = F.relu(x)
    raise AssertionError(layer)


def pair(size=32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, 3, size, size, generator=generator), torch.rand(2, 3, size, size, generator=generator)


# ---- pixels


def test_l1_is_the_mean_absolute_difference():
    sr, hr = torch.tensor([[0.0, 0.5], [1.0, 0.25]]), torch.tensor([[0.5, 0.5], [0.0, 0.0]])
    assert l1.build(l1.Config())(sr, against(hr)) == pytest.approx((0.5 + 0 + 1 + 0.25) / 4)


def test_mse_on_the_wider_range_is_four_times_as_large():
    sr, hr = torch.tensor([[0.0, 0.5], [1.0, 0.25]]), torch.tensor([[0.5, 0.5], [0.0, 0.0]])
    narrow = (0.25 + 0 + 1 + 0.0625) / 4
    assert mse.build(mse.Config())(sr, against(hr)) == pytest.approx(narrow)
    wide = mse.build(mse.Config(range="-1..1"))(sr, against(hr))
    assert wide == pytest.approx(4 * narrow)
    assert wide == pytest.approx(F.mse_loss(2 * sr - 1, 2 * hr - 1).item())


@pytest.mark.parametrize("name", ["l1", "mse"])
def test_half_precision_is_compared_in_full(name):
    module, config = plugins.resolve(PACKAGE, name, {}, name)
    sr = torch.full((1, 3, 64, 64), 0.5, dtype=torch.bfloat16)
    value = module.build(config)(sr, against(torch.full((1, 3, 64, 64), 0.501)))
    assert value.dtype == torch.float32
    assert value == pytest.approx({"l1": 1e-3, "mse": 1e-6}[name], rel=1e-3)  # in bf16 0.501 is 0.5


@pytest.mark.parametrize("name", [name for name in plugins.names(PACKAGE) if name not in ("classifier", "embedding")])
def test_every_term_is_smallest_for_equal_images_and_its_gradient_leads_to_hr(name, thin):
    options = {"weights": "random"} if name in ("vgg", "lpips") else {}
    module, config = plugins.resolve(PACKAGE, name, options, name)
    term = module.build(config)
    sr, hr = pair()
    if name != "tv":  # which depends on sr alone
        assert term(hr, against(hr)) == pytest.approx(1e-3 if name == "charbonnier" else 0, abs=1e-7)
    sr.requires_grad_()
    value = term(sr, against(hr))
    assert value.ndim == 0 and value > 0
    (gradient,) = torch.autograd.grad(value, sr)
    step = 1e-3 * value.detach() / gradient.square().sum()
    assert term(sr.detach() - step * gradient, against(hr)) < value


def test_terms_are_named_and_weighted():
    sr, hr = torch.full((1, 3, 4, 4), 0.5), torch.zeros(1, 3, 4, 4)
    actual = ContentTerms({"l1": 0.01, "mse": {"weight": 2.0, "range": "-1..1"}})(sr, against(hr))
    assert {name: value.item() for name, value in actual.items()} == pytest.approx({"l1": 0.01 * 0.5, "mse": 2 * 4 * 0.25})


def test_weights_arrive_as_text_and_default_to_one():
    sr, hr = torch.full((1, 3, 4, 4), 0.5), torch.zeros(1, 3, 4, 4)
    assert ContentTerms({"l1": "1e-2"})(sr, against(hr))["l1"] == pytest.approx(0.005)
    assert ContentTerms({"mse": {"range": "0..1"}})(sr, against(hr))["mse"] == pytest.approx(0.25)


def test_unknown_terms_and_options_are_refused():
    with pytest.raises(UserError, match=r"objective\.content\.l2\.name: no 'l2'"):
        ContentTerms({"l2": 1.0})
    with pytest.raises(
        UserError, match=r"objective\.content\.mse\.rang: unknown key; did you mean 'objective\.content\.mse\.range'"
    ):
        ContentTerms({"mse": {"rang": "0..1"}})


# ---- VGG


def test_the_thin_network_has_the_modules_of_torchvisions():
    with torch.device("meta"):
        whole = torchvision.models.vgg19().features
    assert [type(module) for module in whole] == [type(module) for module in ThinVGG19().features]
    assert all(
        module.inplace for module in ThinVGG19().features if isinstance(module, nn.ReLU)
    )  # in place they would overwrite tapped features


@pytest.mark.parametrize("activated", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_is_the_jth_convolution_before_the_ith_pooling(thin, layer, activated):
    loss, (sr, hr) = build(layers=layer, activated=activated), pair()
    actual, existing = (phi(loss.features, images, layer, activated) for images in (sr, hr))
    assert loss(sr, against(hr)) == pytest.approx(((actual - existing) / 12.75).square().mean().item(), rel=1e-4)


def test_esrgans_distance_is_the_mean_absolute_difference_before_activation(thin):
    loss, (sr, hr) = build(layers="conv5_4", activated="false", distance="l1", divide="1"), pair()
    actual, existing = (phi(loss.features, images, "conv5_4", activated=False) for images in (sr, hr))
    assert actual.min() < 0
    assert loss(sr, against(hr)) == pytest.approx((actual - existing).abs().mean().item(), rel=1e-4)


def test_layers_add_up_with_their_weights(thin):
    """Pre-activation taps are followed by ReLUs, which must not overwrite them."""
    layers = {"conv1_2": 0.1, "conv2_2": 0.5, "conv3_4": 2.0}
    loss, (sr, hr) = build(layers=layers, activated=False), pair()
    expected = 0.0
    for layer, weight in layers.items():
        actual, existing = (phi(loss.features, images, layer, activated=False) for images in (sr, hr))
        assert actual.min() < 0
        expected += weight * ((actual - existing) / 12.75).square().mean().item()
    assert loss(sr, against(hr)) == pytest.approx(expected, rel=1e-4)


def test_the_order_in_which_layers_are_named_does_not_matter(thin):
    """Each layer keeps its own weight, also where the later one is named first."""
    loss, (sr, hr) = build(layers={"conv3_1": 2.0, "conv1_1": 0.25}), pair()
    late, early = ([phi(loss.features, x, layer, True) / 12.75 for x in (sr, hr)] for layer in ("conv3_1", "conv1_1"))
    assert loss(sr, against(hr)) == pytest.approx(2 * F.mse_loss(*late).item() + 0.25 * F.mse_loss(*early).item(), rel=1e-4)


def test_layers_after_the_last_one_are_not_computed(thin):
    assert len(build(layers="conv1_1").features) == 2  # a convolution and its ReLU
    assert len(build(layers="conv1_1", activated=False).features) == 1


def test_unknown_layers_get_the_nearest_name(thin):
    with pytest.raises(UserError, match=r"objective\.content\.vgg\.layers: no layer 'conv5_5'; did you mean 'conv5_"):
        build(layers="conv5_5")


def test_vgg_is_frozen_and_keeps_no_gradients(thin):
    loss, (sr, hr) = build().train(), pair()
    sr.requires_grad_(), hr.requires_grad_()
    loss(sr, against(hr)).backward()
    assert sr.grad.abs().max() > 0
    assert hr.grad is None
    assert not any(p.requires_grad or p.grad is not None for p in loss.parameters())
    assert not any(module.training for module in loss.features)


def test_grey_images_count_as_three_equal_channels(thin):
    loss, (sr, hr) = build(layers="conv2_1"), (torch.rand(2, 1, 16, 16), torch.rand(2, 1, 16, 16))
    value = loss(sr, against(hr))
    assert value > 0
    assert value == pytest.approx(loss(sr.repeat(1, 3, 1, 1), against(hr.repeat(1, 3, 1, 1))).item(), rel=1e-6)


def test_the_whole_network_with_random_weights_warns(monkeypatch):
    text = []
    monkeypatch.setattr(vgg.logging.getLogger("sr_dist"), "warning", text.append)
    sr, hr = pair(16)
    value = build(layers="conv1_2")(sr, against(hr))
    assert value > 0 and math.isfinite(value)
    assert len(text) == 1 and "RANDOM" in text[0]


def test_published_weights_are_needed_only_where_they_are_used():
    assert vgg.files(vgg.Config()) == ["vgg19-dcbb9e9d.pth"]
    assert vgg.files(vgg.Config(weights="random")) == []


def test_the_error_about_missing_weights_names_the_path(thin, weights_folder):
    with pytest.raises(MissingWeights) as refusal:
        build(weights="imagenet")
    assert str(refusal.value).startswith("objective.content.vgg: ")
    assert str(weights_folder / "vgg19-dcbb9e9d.pth") in str(refusal.value)
    assert "SR_DIST_WEIGHTS" in str(refusal.value) and "allow_download=true" in str(refusal.value)


def test_weights_with_another_sha256_are_refused(thin, weights_folder):
    torch.save(ThinVGG19().state_dict(), weights_folder / "vgg19-dcbb9e9d.pth")
    with pytest.raises(
        UserError, match=r"objective\.content\.vgg: '.*vgg19-dcbb9e9d\.pth' is damaged or another file.*not dcbb9e9d"
    ):
        build(weights="imagenet")


@pytest.mark.parametrize("hub", [False, True])
def test_a_file_whose_name_holds_its_sha256_is_loaded(thin, weights_folder, monkeypatch, hub):
    existing = ThinVGG19().state_dict()
    folder = weights_folder / "hub" / "checkpoints" if hub else weights_folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(existing, folder / "plain.pth")
    name = f"vgg19-{sha256(folder / 'plain.pth')[:8]}.pth"
    (folder / "plain.pth").rename(folder / name)
    monkeypatch.setattr(vgg, "FILE", name)
    loss = build(weights="imagenet")
    assert all(torch.equal(value, existing[f"features.{key}"]) for key, value in loss.features.state_dict().items())


def pickled(thing):
    out = io.BytesIO()
    torch.save(thing, out)
    return out.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no weights",
        b"\x80\x02.",
        pickled([1, 2]),
        pickled({"features.0.weight": torch.zeros(1)}),
        pickled(torch.zeros(2))[:-40],
    ],
    ids=["empty", "text", "short pickle", "list", "other tensors", "cut"],
)
def test_foreign_files_are_refused_in_one_line(thin, weights_folder, monkeypatch, content):
    monkeypatch.setattr(vgg, "FILE", "vgg19.pth")
    (weights_folder / "vgg19.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"^objective\.content\.vgg: '.*vgg19\.pth' is no VGG19 weights file: .") as refusal:
        build(weights="imagenet")
    assert "\n" not in str(refusal.value)


def test_the_batch_is_averaged(thin):
    loss, (sr, hr) = build(layers={"conv1_1": 1.0, "conv2_2": 1.0}), pair()
    one_by_one = [loss(sr[i : i + 1], against(hr[i : i + 1])).item() for i in range(2)]
    assert loss(sr, against(hr)) == pytest.approx(sum(one_by_one) / 2, rel=1e-5)
