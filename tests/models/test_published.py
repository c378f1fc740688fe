"""Networks compared with their publications: sizes, tensor names, initial weights, equations."""

import math

import pytest
import torch
import torch.nn.functional as F

from sr_dist.core import plugins
from sr_dist.core.errors import UserError
from sr_dist.core.launch_env import Launch
from sr_dist.core.resize import imresize
from sr_dist.models.generators import rrdb, srresnet


def build(kind, name, scale=4, **options):
    module, config = plugins.resolve(f"sr_dist.models.{kind}s", name, options, kind)
    return module.build(config, scale)


def count(kind, name, scale=4, **options):
    with torch.device("meta"):
        return sum(p.numel() for p in build(kind, name, scale, **options).parameters())


@pytest.mark.parametrize(
    ("kind", "name", "options", "published"),
    [
        ("generator", "srcnn", {"channels": 1, "kernels": (9, 1, 5)}, 8_032 + 64 + 32 + 1),  # the paper counts no biases
        ("generator", "srcnn", {"channels": 1}, 57_184 + 64 + 32 + 1),
        ("generator", "srresnet", {}, 1_549_462),
        ("generator", "msrresnet", {}, 1_517_571),
        ("generator", "rrdb", {}, 16_697_987),
        ("generator", "rrdb", {"num_blocks": 6}, 4_467_779),
        ("generator", "srvgg", {"num_blocks": 32}, 1_213_296),
        ("generator", "srvgg", {}, 621_424),
        ("discriminator", "unet_sn", {}, 4_376_897),
    ],
)
def test_networks_have_the_published_number_of_parameters(kind, name, options, published):
    assert count(kind, name, **options) == published


def conv(inside, outside):
    return 9 * inside * outside + outside


def test_srgans_discriminator_has_the_papers_dimensions():
    """By hand: eight convolutions, seven with batch normalization, 96 / 16 = 6, dense 1024, dense 1."""
    widths = [3, 64, 64, 128, 128, 256, 256, 512, 512]
    convolutions = sum(conv(inside, outside) for inside, outside in zip(widths, widths[1:], strict=False))
    norms = 2 * sum(widths[2:])
    assert count("discriminator", "srgan_vgg") == convolutions + norms + (512 * 36 * 1024 + 1024) + (1024 + 1)
    assert count("discriminator", "srgan_vgg", pooling=True) == convolutions + norms + (512 * 1024 + 1024) + (1024 + 1)
    assert count("discriminator", "patch") == convolutions + norms + (9 * 512 + 1)


@pytest.mark.parametrize(("scale", "inside", "ups"), [(1, 48, 2), (2, 12, 2), (4, 3, 2), (8, 3, 3)])
def test_rrdbs_tensors_are_named_as_in_basicsr(scale, inside, ups):
    actual = build("generator", "rrdb", scale, num_blocks=2, width=8, growth=4).state_dict()
    names = [f"body.{i}.rdb{j}.conv{k}" for i in range(2) for j in (1, 2, 3) for k in (1, 2, 3, 4, 5)]
    names += ["conv_first", "conv_body", "conv_hr", "conv_last", *(f"conv_up{n + 1}" for n in range(ups))]
    assert set(actual) == {f"{name}.{end}" for name in names for end in ("weight", "bias")}
    assert actual["conv_first.weight"].shape == (8, inside, 3, 3)
    assert actual["body.1.rdb2.conv3.weight"].shape == (4, 8 + 2 * 4, 3, 3)
    assert actual["conv_up1.weight"].shape == (8, 8, 3, 3)


@pytest.mark.parametrize(("scale", "up", "rest"), [(2, 4, []), (3, 9, []), (4, 4, ["upconv2"])])
def test_msrresnets_tensors_are_named_as_in_basicsr(scale, up, rest):
    actual = build("generator", "msrresnet", scale, num_blocks=2, width=8).state_dict()
    names = [f"body.{i}.conv{k}" for i in range(2) for k in (1, 2)] + ["conv_first", "upconv1", "conv_hr", "conv_last", *rest]
    assert set(actual) == {f"{name}.{end}" for name in names for end in ("weight", "bias")}
    assert actual["upconv1.weight"].shape == (8 * up, 8, 3, 3)


def test_srresnets_tensors_have_the_names_its_docstring_gives():
    assert srresnet.__doc__ and "body.{i}.conv1, bn1, act, conv2, bn2" in srresnet.__doc__
    actual = {name.rsplit(".", 1)[0] for name in build("generator", "srresnet", num_blocks=1, width=8).state_dict()}
    block = {f"body.0.{part}" for part in ("conv1", "bn1", "act", "conv2", "bn2")}
    ups = {f"upsample.{u}.{part}" for u in (0, 1) for part in ("conv", "act")}
    assert actual == block | ups | {"conv_first", "act_first", "conv_body", "bn_body", "conv_last"}


def test_the_unet_discriminators_tensors_are_named_as_in_real_esrgan():
    actual = build("discriminator", "unet_sn", width=8).state_dict()
    spectral = {f"conv{n}.weight_{end}" for n in range(1, 9) for end in ("orig", "u", "v")}
    assert set(actual) == spectral | {"conv0.weight", "conv0.bias", "conv9.weight", "conv9.bias"}
    assert actual["conv1.weight_orig"].shape == (16, 8, 4, 4)


# ---- initial weights


def kaiming_std(weight):
    """sqrt(2 / fan in)"""
    return math.sqrt(2 / weight[0].numel())


def test_dense_blocks_start_at_a_tenth_of_kaimings_and_the_outer_convolutions_with_torchs_default():
    torch.manual_seed(0)
    network = rrdb.build(rrdb.Config(num_blocks=2), 4)
    for name, tensor in network.named_parameters():
        if name.startswith("body") and name.endswith("weight"):
            assert tensor.std().item() == pytest.approx(0.1 * kaiming_std(tensor), rel=0.03), name
            assert tensor.mean().item() == pytest.approx(0, abs=0.02 * kaiming_std(tensor)), name
        elif name.startswith("body"):
            assert tensor.abs().max() == 0
        elif name.endswith("weight"):  # uniform in +-1 / sqrt(fan in)
            bound = 1 / math.sqrt(tensor[0].numel())
            assert tensor.abs().max() <= bound, name
            assert tensor.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1), name


def test_every_convolution_of_msrresnet_starts_at_a_tenth_of_kaimings():
    torch.manual_seed(0)
    for name, tensor in build("generator", "msrresnet", num_blocks=2).named_parameters():
        if name.endswith("weight"):
            assert tensor.std().item() == pytest.approx(0.1 * kaiming_std(tensor), rel=0.06), name
        else:
            assert tensor.abs().max() == 0


def test_a_fresh_msrresnet_is_nearly_the_bilinear_image():
    torch.manual_seed(0)
    lr = torch.rand(1, 3, 7, 5)
    with torch.no_grad():
        sr = build("generator", "msrresnet")(lr)
    torch.testing.assert_close(sr, F.interpolate(lr, scale_factor=4, mode="bilinear"), atol=1e-3, rtol=0)


def test_the_unet_discriminators_norms_are_near_one_from_the_start():
    torch.manual_seed(0)
    discriminator = build("discriminator", "unet_sn", width=16).eval()
    with torch.no_grad():
        discriminator(torch.rand(1, 3, 8, 8))
    for n in range(1, 9):
        weight = getattr(discriminator, f"conv{n}").weight
        assert torch.linalg.matrix_norm(weight.flatten(1), 2) == pytest.approx(1, abs=0.15), n


# ---- equations


def test_residuals_of_rrdb_are_scaled_by_a_fifth_at_both_levels():
    """With convolutions that return a constant c, a dense block adds 0.2 c, and an RRDB adds 0.2 of the sum of three."""
    block = rrdb.RRDB(4, 2)
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            parameter.fill_(5.0 if name.endswith("conv5.bias") else 0.0)
    x = torch.rand(1, 4, 3, 3)
    torch.testing.assert_close(block.rdb1(x), x + 0.2 * 5)
    torch.testing.assert_close(block(x), x + 0.2 * (x + 3 * 0.2 * 5))


def test_a_dense_convolution_gets_all_features_before_it():
    torch.manual_seed(0)
    block, x = rrdb.DenseBlock(3, 2), torch.rand(1, 3, 5, 4)
    features = x
    for k in (1, 2, 3, 4):
        layer = getattr(block, f"conv{k}")
        features = torch.cat([features, F.leaky_relu(F.conv2d(features, layer.weight, layer.bias, padding=1), 0.2)], 1)
    expected = x + 0.2 * F.conv2d(features, block.conv5.weight, block.conv5.bias, padding=1)
    torch.testing.assert_close(block(x), expected)


def test_srcnn_with_a_skip_starts_near_bicubic_and_its_kernels_are_odd():
    torch.manual_seed(0)
    network, lr = build("generator", "srcnn", 3, skip="bicubic", widths=(8, 4)), torch.rand(1, 3, 5, 4)
    with torch.no_grad():
        network.conv3.weight.zero_(), network.conv3.bias.zero_()
        torch.testing.assert_close(network(lr), imresize(lr, 3))
    with pytest.raises(UserError, match=r"^generator\.kernels: \[9, 4, 5\]"):
        build("generator", "srcnn", kernels=(9, 4, 5))


def test_tanh_output_is_in_the_image_range():
    torch.manual_seed(0)
    network = build("generator", "srresnet", num_blocks=1, width=4, output="tanh")
    with torch.no_grad():
        network.conv_last.weight *= 100
        sr = network(torch.rand(1, 3, 6, 6))
    assert 0 <= sr.min() < 0.1 and 0.9 < sr.max() <= 1


# ---- outputs and refusals


def test_logits_are_per_patch_per_pixel_or_per_image():
    images = torch.rand(2, 3, 28, 28)
    assert build("discriminator", "patch", widths=(4, 4, 4, 4))(images).logits.shape == (2, 2, 2)
    assert build("discriminator", "unet_sn", width=4)(images[..., :27, :25]).logits.shape == (2, 27, 25)
    assert build("discriminator", "srgan_vgg", width=4, crop=28)(images).logits.shape == (2,)


def test_a_dense_head_refuses_other_sizes():
    with pytest.raises(UserError, match=r"^discriminator\.crop: the dense layer fits 32 x 32 pixels, not 28 x 28$"):
        build("discriminator", "srgan_vgg", width=4, crop=32)(torch.rand(2, 3, 28, 28))


@pytest.mark.parametrize(
    ("kind", "name", "options", "launch", "reason_part"),
    [
        ("discriminator", "unet_sn", {}, {"stage": 3, "cuda": True}, "ZeRO-3"),
        ("discriminator", "unet_sn", {}, {"stage": 2, "ranks": 2}, None),
    ],
)
def test_networks_state_why_they_cannot_run_under_a_launch(kind, name, options, launch, reason_part):
    module, config = plugins.resolve(f"sr_dist.models.{kind}s", name, options, kind)
    reason = module.refuses(config, Launch(**launch))
    assert reason is None if reason_part is None else reason_part in reason


@pytest.mark.parametrize("kind", ["generator", "discriminator"])
def test_every_network_accepts_one_channel_as_text(kind):
    """Recipes hold text: `channels: 1` arrives as "1"."""
    for name in plugins.names(f"sr_dist.models.{kind}s"):
        needed = {"arch": "SPAN"} if name == "spandrel" else {}
        _, config = plugins.resolve(f"sr_dist.models.{kind}s", name, {"channels": "1", **needed}, kind)
        assert config.channels == 1, name
