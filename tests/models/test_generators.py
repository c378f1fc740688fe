"""Every file of sr_dist/models/generators, new ones included. SMALL has options that make them small."""

import copy

import pytest
import torch

from sr_dist.core import plugins
from sr_dist.core.errors import UserError
from sr_dist.core.resize import imresize

PACKAGE = "sr_dist.models.generators"
SMALL = {
    "srugan": {"widths": (8, 12), "num_blocks": 1, "num_dense_blocks": 1, "reduction": 4},
    "srcnn": {"widths": (8, 4)},
    "srresnet": {"width": 8, "num_blocks": 2},
    "msrresnet": {"width": 8, "num_blocks": 2},
    "rrdb": {"width": 8, "num_blocks": 1, "growth": 4},
    "srvgg": {"width": 8, "num_blocks": 2},
    "spandrel": {"arch": "Compact", "num_feat": 8, "num_conv": 2},  # the others: test_spandrel.py
    "swinir": {"width": 8, "depths": (2,), "heads": 2, "window": 4},
}
SIZES = [(1, 1), (1, 7), (5, 3), (17, 16)]


def build(name, scale, **options):
    torch.manual_seed(0)
    module, config = plugins.resolve(PACKAGE, name, {**SMALL.get(name, {}), **options}, "generator")
    return module.build(config, scale)


def has(name, option):
    module, _ = plugins.resolve(PACKAGE, name, SMALL.get(name, {}), "generator")
    return option in module.Config.model_fields


def supported(name):
    scales = []
    for scale in (1, 2, 3, 4, 8):
        try:
            build(name, scale)
        except UserError:
            continue
        scales.append(scale)
    return scales


NAMES = plugins.names(PACKAGE)
CASES = [(name, scale) for name in NAMES for scale in supported(name)]


def nudged(network):
    """Away from initial values that stop gradients on purpose, such as a last layer of zeros."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return network


def test_the_package_has_generators():
    assert "srugan" in NAMES
    assert {name for name, _ in CASES} == set(NAMES)  # each supports a scale


@pytest.mark.parametrize(("name", "scale"), CASES)
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_comes_out_scale_times_as_large(name, scale, channels):
    if not has(name, "channels"):
        pytest.skip("no option channels")
    network = build(name, scale, channels=channels).eval()
    with torch.no_grad():
        for height, width in SIZES:
            sr = network(torch.rand(2, channels, height, width))
            assert sr.shape == (2, channels, height * scale, width * scale)
            assert sr.dtype == torch.float32
            assert sr.isfinite().all()


@pytest.mark.parametrize(("name", "scale"), CASES)
def test_gradients_reach_every_parameter(name, scale):
    network = nudged(build(name, scale)).train()
    network(torch.rand(2, 3, 12, 9)).square().mean().backward()
    silent = [n for n, p in network.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().max() > 0)]
    assert silent == []


@pytest.mark.parametrize(("name", "scale"), CASES)
def test_evaluation_is_deterministic_and_sees_each_image_alone(name, scale):
    network = nudged(build(name, scale)).eval()
    before = copy.deepcopy(network.state_dict())
    lr = torch.rand(3, 3, 8, 11)
    with torch.no_grad():
        first, again = network(lr), network(lr)
        alone = torch.cat([network(image[None]) for image in lr])
    assert torch.equal(first, again)
    torch.testing.assert_close(first, alone, atol=1e-5, rtol=1e-4)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize(("name", "scale"), CASES)
def test_bf16_autocast_stays_finite_and_near(name, scale):
    network, lr = nudged(build(name, scale)), torch.rand(2, 3, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sr = network(lr)
        loss = sr.float().square().mean()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
    with torch.no_grad():
        torch.testing.assert_close(sr.float(), network(lr), atol=0.05, rtol=0.05)


@pytest.mark.parametrize(("name", "scale"), CASES)
def test_channels_last_changes_nothing(name, scale):
    network, lr = nudged(build(name, scale)).eval(), torch.rand(2, 3, 9, 6)
    with torch.no_grad():
        expected = network(lr)
        actual = network.to(memory_format=torch.channels_last)(lr.to(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_other_scales_are_the_users_mistake(name):
    for scale in {1, 2, 3, 4, 8} - {scale for known, scale in CASES if known == name}:
        with pytest.raises(UserError, match=rf"^scale: .*{name}.*{scale}"):
            build(name, scale)


@pytest.mark.parametrize("name", NAMES)
def test_equal_seeds_build_equal_networks(name):
    scale = next(scale for known, scale in CASES if known == name)
    first, second = build(name, scale).state_dict(), build(name, scale).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


# ---- SR-UGAN


def test_srugan_refuses_scale_3():
    with pytest.raises(UserError, match="2 or 4, not 3"):
        build("srugan", 3)


@pytest.mark.parametrize(("name", "scale"), [("srugan", 2), ("srugan", 4), ("swinir", 3), ("swinir", 4)])
def test_a_bicubic_skip_starts_as_imresize(name, scale):
    network, lr = build(name, scale, skip="bicubic"), torch.rand(2, 3, 7, 10)
    torch.testing.assert_close(network(lr), imresize(lr, scale), atol=1e-6, rtol=0)


def test_srugan_with_a_bicubic_skip_starts_as_imresize_under_autocast_too():
    network, lr = build("srugan", 2, skip="bicubic"), torch.rand(2, 3, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sr = network(lr)
    torch.testing.assert_close(sr.float(), imresize(lr, 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", [2, 4])
def test_srugan_without_skip_stays_in_the_image_range(scale):
    network = build("srugan", scale, skip="none")
    with torch.no_grad():
        network.tail.weight *= 100  # large enough to leave the range without tanh
        sr = network(torch.rand(2, 3, 9, 9))
    assert sr.min() >= 0 and sr.max() <= 1
    assert sr.max() - sr.min() > 0.9


@pytest.mark.parametrize("widths", [(8,), (8, 8, 8), (8, 12, 16, 20)])
def test_srugan_takes_any_number_of_levels(widths):
    sr = nudged(build("srugan", 2, widths=widths))(torch.rand(1, 3, 5, 9))
    assert sr.shape == (1, 3, 10, 18)


def test_srugan_depends_on_the_whole_image():
    """The U-Net and its attention give every pixel the context of all others."""
    network, lr = nudged(build("srugan", 2, widths=(8, 12, 16))), torch.rand(1, 3, 40, 40, requires_grad=True)
    network(lr)[..., 0, 0].sum().backward()
    assert lr.grad[..., -1, -1].abs().max() > 0


def conv(inside, outside, kernel):
    return inside * outside * kernel**2 + outside


def residual(inside, width):
    return conv(inside, width, 3) + conv(width, width, 3) + (conv(inside, width, 1) if inside != width else 0)


def attention(width, reduction=8):
    return conv(width, width // reduction, 1) + conv(width // reduction, width, 1) + conv(2, 1, 7)


def up(inside, width):
    return conv(inside, 4 * width, 3) + attention(4 * width)


def dense(width):
    half = width // 2
    return conv(width, half, 3) + conv(width + half, half, 3) + conv(width + 2 * half, width, 3)


@pytest.mark.parametrize(("scale", "reference"), [(2, 11_369_199), (4, 11_533_682)])
def test_srugan_has_the_reference_dimensions(scale, reference):
    """By hand, from the description of the reference; the two numbers are the sums, so that a change of either is noticed."""
    encoder = sum(
        residual(inside, width) + residual(width, width) + attention(width)
        for inside, width in [(64, 64), (64, 96), (96, 128), (128, 256)]
    )
    decoder = (
        up(256, 128) + residual(256, 128) + residual(128, 128) + up(128, 96) + residual(192, 96) + residual(96, 96) + up(96, 64)
    )
    blocks = 8 * dense(128) + conv(128, 64, 3) + 8 * dense(64)
    enlarge = {2: 1, 4: 2}[scale] * (conv(64, 256, 3) + attention(256))
    expected = conv(3, 64, 7) + encoder + decoder + blocks + enlarge + conv(64, 3, 7)
    module, config = plugins.resolve(PACKAGE, "srugan", {}, "generator")
    with torch.device("meta"):
        network = module.build(config, scale)
    assert sum(p.numel() for p in network.parameters()) == expected == reference


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_rrdb_with_a_bicubic_skip_adds_to_imresize(scale):
    whole, bare = build("rrdb", scale, skip="bicubic"), build("rrdb", scale)
    bare.load_state_dict(whole.state_dict())
    lr = torch.rand(2, 3, 7, 10)
    torch.testing.assert_close(whole(lr) - imresize(lr, scale), bare(lr), atol=1e-5, rtol=0)
