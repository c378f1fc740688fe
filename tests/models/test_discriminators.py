"""Every file of sr_dist/models/discriminators, new ones included. SMALL has options that make them small."""

import pytest
import torch

from sr_dist.core import plugins
from sr_dist.core.batch import DiscriminatorOutput
from sr_dist.core.errors import UserError
from sr_dist.models import torchscript

PACKAGE = "sr_dist.models.discriminators"
SMALL = {
    "acgan": {"widths": (8, 8, 12), "features": 16},
    "features": {"arch": "squeezenet1_1", "layers": ("features.0", "features.4"), "backbone": "random", "width": 8, "size": 64},
    "patch": {"widths": (8, 12)},
    "srgan_vgg": {"width": 8, "features": 16, "pooling": True},
    "unet_sn": {"width": 8},
}
SIZES = [(1, 1), (1, 7), (5, 3), (17, 16), (33, 40)]
NAMES = plugins.names(PACKAGE)


def build(name, **options):
    torch.manual_seed(0)
    module, config = plugins.resolve(PACKAGE, name, {**SMALL.get(name, {}), **options}, "discriminator")
    return module.build(config, 2)


def has(name, option):
    module, _ = plugins.resolve(PACKAGE, name, SMALL.get(name, {}), "discriminator")
    return option in module.Config.model_fields


def with_option(option):
    return [name for name in NAMES if has(name, option)]


def total(output):
    classes = output.class_logits.square().mean() if output.class_logits is not None else 0
    return output.logits.square().mean() + output.logits.mean() + classes


def test_the_package_has_discriminators():
    assert "acgan" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_images_of_any_size_get_one_output_each(name):
    discriminator = build(name).eval()
    with torch.no_grad():
        for height, width in SIZES:
            output = discriminator(torch.rand(3, 3, height, width))
            assert isinstance(output, DiscriminatorOutput)
            assert output.logits.shape[0] == 3 and output.logits.ndim in (1, 3)  # images or patches
            assert output.logits.isfinite().all()
            assert output.class_logits is None


@pytest.mark.parametrize("name", with_option("channels"))
def test_grey_images_are_accepted(name):
    assert build(name, channels=1)(torch.rand(2, 1, 16, 12)).logits.shape[0] == 2


@pytest.mark.parametrize("name", with_option("classes"))
@pytest.mark.parametrize("classes", [1, 2, 10])
def test_a_class_head_has_a_logit_per_class(name, classes):
    output = build(name, classes=classes)(torch.rand(3, 3, 9, 16))
    assert output.class_logits.shape == (3, classes)
    assert output.logits.shape[0] == 3


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter_and_the_image(name):
    discriminator = build(name, **({"classes": 5} if has(name, "classes") else {})).train()
    images = torch.rand(4, 3, 24, 24, requires_grad=True)
    total(discriminator(images)).backward()
    assert [n for n, p in discriminator.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []
    assert images.grad.abs().amax((1, 2, 3)).min() > 0


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_is_deterministic_and_sees_each_image_alone(name):
    discriminator, images = build(name).eval(), torch.rand(3, 3, 20, 13)
    with torch.no_grad():
        first, again = discriminator(images).logits, discriminator(images).logits
        alone = torch.cat([discriminator(image[None]).logits for image in images])
    assert torch.equal(first, again)
    torch.testing.assert_close(first, alone, atol=1e-5, rtol=1e-4)
    assert first.std() > 0  # it depends on the image


@pytest.mark.parametrize("name", NAMES)
def test_bf16_autocast_stays_finite(name):
    discriminator = build(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = discriminator(torch.rand(2, 3, 16, 16)).logits.float().square().mean()
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in discriminator.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", NAMES)
def test_channels_last_changes_nothing(name):
    discriminator, images = build(name).eval(), torch.rand(2, 3, 18, 22)
    with torch.no_grad():
        expected = discriminator(images).logits
        actual = discriminator.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last)).logits
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


def test_acgan_has_the_reference_dimensions():
    def conv(inside, outside, kernel):
        return inside * outside * kernel**2 + outside

    stages = [(3, 64), (64, 64), (64, 128), (128, 256), (256, 512), (512, 512)]
    expected = sum(conv(i, w, 3) + conv(w, w, 3) + (conv(i, w, 1) if i != w else 0) for i, w in stages)
    expected += conv(512, 1024, 3) + (1024 * 1024 + 1024) + (1024 + 1) + (1024 * 1000 + 1000)
    module, config = plugins.resolve(PACKAGE, "acgan", {"classes": 1000}, "discriminator")
    with torch.device("meta"):
        discriminator = module.build(config, 2)
    assert sum(p.numel() for p in discriminator.parameters()) == expected == 16_447_273


# ---- features


class Maps(torch.nn.Module):
    """Two maps of known numbers: the image, and its mean of 2 x 2 pixels."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, images):
        return images * self.scale, torch.nn.functional.avg_pool2d(images * self.scale, 2)


class Rows(torch.nn.Module):
    def forward(self, images):
        return images.mean((2, 3))


def scripted(path, network):
    with torchscript.without_deprecation():
        torch.jit.trace(network, torch.rand(2, 3, 16, 16)).save(str(path))
    return {"model": str(path), "size": None}


@pytest.fixture
def critic(tmp_path):
    return build("features", **scripted(tmp_path / "maps.pt", Maps()))


def test_every_head_counts_the_same_in_the_mean_of_the_logits(critic):
    images = torch.rand(2, 3, 16, 12)
    heads = [head(features).mean() for head, features in zip(critic.heads, Maps()(images), strict=True)]
    torch.testing.assert_close(critic(images).logits.mean(), torch.stack(heads).mean())


def test_the_frozen_network_is_neither_trained_nor_saved_and_moves_along(critic):
    names = [*critic.state_dict(), *dict(critic.named_parameters())]
    assert names and all(name.startswith("heads.") for name in names)
    critic.train()
    images = torch.rand(2, 3, 16, 12, requires_grad=True)
    total(critic(images)).backward()
    (frozen,) = critic._frozen
    assert images.grad.abs().max() > 0 and not frozen.training
    assert all(not p.requires_grad and p.grad is None for p in frozen.parameters())
    assert {p.dtype for p in critic.to(torch.float64)._frozen[0].parameters()} == {torch.float64}


def test_random_backbones_are_the_same_in_every_process_and_leave_the_random_state_alone():
    """No checkpoint has them, so ranks and resumed runs draw them again."""
    first, second = build("features"), (torch.manual_seed(5), build("features"))[1]
    assert all(a.equal(b) for a, b in zip(first._frozen[0].parameters(), second._frozen[0].parameters(), strict=True))
    assert first.heads[0][0].weight.equal(second.heads[0][0].weight)  # `build` sets the seed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "vgg61"}, r"^discriminator\.arch: torchvision has no network 'vgg61'; did you mean 'vgg"),
        ({"layers": ("features.99",)}, r"^discriminator\.layers: squeezenet1_1 has no module 'features\.99'"),
        ({"layers": ()}, r"^discriminator\.layers: names no module"),
        ({"model": "none.pt"}, r"^discriminator\.model: "),
    ],
)
def test_wrong_frozen_networks_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        build("features", **options)


def test_a_model_that_makes_no_feature_maps_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^discriminator\.model: '.*' returns \(1, 3\) for 1 images, not feature maps"):
        build("features", **scripted(tmp_path / "rows.pt", Rows()))
