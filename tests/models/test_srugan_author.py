"""SR-UGAN's networks as its author's public code describes them, written again as plain functions of the tensors."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from sr_dist.models.discriminators import acgan
from sr_dist.models.generators import srugan

SMALL = {"widths": (16, 24, 32), "num_blocks": 2, "num_dense_blocks": 2}


class Layers:
    """Takes the tensors of a network in the order of its layers, each once."""

    def __init__(self, network):
        self.tensors = dict(network.named_parameters())

    def conv(self, name, x):
        weight = self.tensors.pop(f"{name}.weight")
        bias = self.tensors.pop(f"{name}.bias", None)
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    def swish(self, name, x):
        return F.silu(self.conv(name, x))

    def residual_block(self, name, x, width):
        short = x if x.shape[1] == width else self.conv(f"{name}.skip", x)
        return short + self.swish(f"{name}.conv2", self.swish(f"{name}.conv1", x))

    def attention(self, name, x):
        """One two-layer network sees the mean and the maximum; then a convolution without bias sees those of the channels."""
        squeeze, excite, space = (self.tensors.pop(f"{name}.{part}.weight") for part in ("squeeze", "excite", "space"))
        biases = [self.tensors.pop(f"{name}.{part}.bias") for part in ("squeeze", "excite")]

        def excited(pooled):
            return F.conv2d(F.silu(F.conv2d(pooled, squeeze, biases[0])), excite, biases[1])

        means, largest = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        x = x * torch.sigmoid(excited(means) + excited(largest))
        over_channels = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)
        return x * torch.sigmoid(F.conv2d(over_channels, space, padding=3))

    def dense_block(self, name, x, width):
        short = x if x.shape[1] == width else self.conv(f"{name}.skip", x)
        first = torch.cat([short, self.swish(f"{name}.conv1", x)], 1)
        second = torch.cat([first, self.swish(f"{name}.conv2", first)], 1)
        return short + self.swish(f"{name}.conv3", second)


def generator(network, lr, widths, num_blocks, dense_widths, scale):
    layers = Layers(network)
    x, levels = layers.swish("head", lr), []
    for level, width in enumerate(widths):
        x = F.max_pool2d(x, 2) if level else x
        for block in range(num_blocks):
            x = layers.residual_block(f"encoder.{level}.{block}", x, width)
        if level < len(widths) - 1:
            x = layers.attention(f"encoder.{level}.{num_blocks}", x)
            levels.append(x)
    for number, width in enumerate(reversed(widths[:-1])):
        x = F.pixel_shuffle(layers.attention(f"decoder.{number}.attention", layers.swish(f"decoder.{number}.conv", x)), 2)
        x = torch.cat([x, levels.pop()], 1)
        if levels:
            for block in range(num_blocks):
                x = layers.residual_block(f"decoder.{number}.blocks.{block}", x, width)
    for name, width in dense_widths:
        x = layers.dense_block(name, x, width)
    for doubling in range({2: 1, 4: 2}[scale]):
        x = layers.swish(f"enlarge.{4 * doubling}", x)
        x = F.pixel_shuffle(layers.attention(f"enlarge.{4 * doubling + 2}", x), 2)
    out = (torch.tanh(layers.conv("tail", x)) + 1) / 2
    assert not layers.tensors
    return out


def discriminator(network, images, widths):
    layers = Layers(network)
    x = F.leaky_relu(layers.conv("stem", images * 2 - 1), 0.2)
    for stage in range(len(widths)):
        short = layers.conv(f"stages.{stage}.skip", x)
        x = F.leaky_relu(layers.conv(f"stages.{stage}.conv1", x), 0.2)
        x = F.leaky_relu(layers.conv(f"stages.{stage}.conv2", x), 0.2)
        x = F.avg_pool2d(x + short, 2)
    x = F.leaky_relu(layers.conv("conv", x), 0.2).mean((2, 3))
    dense, validity, classes = ((layers.tensors.pop(f"{n}.weight"), layers.tensors.pop(f"{n}.bias")) for n in HEADS)
    x = F.leaky_relu(F.linear(x, *dense), 0.2)
    assert not layers.tensors
    return F.linear(x, *validity)[:, 0], F.linear(x, *classes)


HEADS = ("dense", "validity", "classes")


def with_biases(network):
    """Biases begin at 0, where a missing one would not show."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.normal_(0, 0.1)
    return network


@pytest.mark.parametrize(("scale", "form"), itertools.product((2, 4), ("author", "paper")))
def test_the_published_generators_equal_their_description(scale, form):
    torch.manual_seed(0)
    network = with_biases(srugan.build(srugan.Config(form=form, **SMALL), scale))
    wide = [(f"dense_wide.{i}", 32) for i in range(2 if form == "paper" else 0)]
    default = [(f"dense.{i}", 16) for i in range(2 if form == "paper" else 4)]
    lr = torch.rand(2, 3, 12, 16)
    expected = generator(network, lr, SMALL["widths"], 2, [*wide, *default], scale)
    torch.testing.assert_close(network(lr), expected, rtol=1e-5, atol=1e-6)


def test_the_published_discriminator_equals_its_description():
    torch.manual_seed(0)
    network = with_biases(acgan.build(acgan.Config(form="author", widths=(8, 8, 12), features=16, classes=5), 2))
    images = torch.rand(2, 3, 18, 27)
    logits, class_logits = discriminator(network, images, (8, 8, 12))
    out = network(images)
    torch.testing.assert_close(out.logits, logits, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out.class_logits, class_logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("form", "scale", "numbers"), [("author", 2, 10_070_373), ("author", 4, 10_234_855), ("paper", 2, 15_380_325)]
)
def test_the_published_generators_have_the_published_numbers(form, scale, numbers):
    network = srugan.build(srugan.Config(form=form), scale)
    assert sum(parameter.numel() for parameter in network.parameters()) == numbers


def test_the_published_discriminator_has_the_published_numbers():
    network = acgan.build(acgan.Config(form="author", classes=1000), 2)
    assert sum(parameter.numel() for parameter in network.parameters()) == 16_754_921
