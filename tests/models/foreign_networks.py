"""Plain networks in the layouts of other projects, with random weights."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from spandrel.architectures.Compact import Compact as SRVGGNetCompact
from spandrel.architectures.SwinIR import SwinIR
from torch import nn


def conv(inputs, outside, kernel=3, bias=True):
    return nn.Conv2d(inputs, outside, kernel, padding=kernel // 2, bias=bias)


def lrelu(x, slope=0.2):
    return F.leaky_relu(x, slope)


class Dense(nn.Module):
    """Five convolutions; `wrapped` puts each in a Sequential, as in the code of 2018."""

    def __init__(self, width, growth, wrapped=False):
        super().__init__()
        for k in range(1, 6):
            layer = conv(width + (k - 1) * growth, growth if k < 5 else width)
            self.add_module(f"conv{k}", nn.Sequential(layer) if wrapped else layer)

    def forward(self, x):
        features = x
        for k in range(1, 5):
            features = torch.cat([features, lrelu(getattr(self, f"conv{k}")(features))], 1)
        return x + 0.2 * self.conv5(features)


class ThreeDense(nn.Module):
    def __init__(self, name, *sizes):
        super().__init__()
        for j in (1, 2, 3):
            self.add_module(f"{name}{j}", Dense(*sizes))

    def forward(self, x):
        y = x
        for block in self.children():
            y = block(y)
        return x + 0.2 * y


class NamedRRDB(nn.Module):
    """The names of BasicSR, or those of the ESRGAN repository (`mid`)."""

    def __init__(self, channels=3, num_blocks=2, width=8, growth=4, doublings=2, fold=1, mid=False):
        super().__init__()
        self.fold, self.mid = fold, mid
        names = (
            ("RRDB_trunk", "RDB", "trunk_conv", "upconv", "HRconv") if mid else ("body", "rdb", "conv_body", "conv_up", "conv_hr")
        )
        self.names = names
        self.conv_first = conv(channels * fold**2, width)
        self.add_module(names[0], nn.Sequential(*(ThreeDense(names[1], width, growth) for _ in range(num_blocks))))
        self.add_module(names[2], conv(width, width))
        self.ups = [f"{names[3]}{i + 1}" for i in range(doublings)]
        for up in self.ups:
            self.add_module(up, conv(width, width))
        self.add_module(names[4], conv(width, width))
        self.conv_last = conv(width, channels)

    def forward(self, x):
        x = self.conv_first(F.pixel_unshuffle(x, self.fold))
        x = x + getattr(self, self.names[2])(getattr(self, self.names[0])(x))
        for up in self.ups:
            x = lrelu(getattr(self, up)(F.interpolate(x, scale_factor=2)))
        return self.conv_last(lrelu(getattr(self, self.names[4])(x)))


class Shortcut(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.sub = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.sub(x)


class NumberedRRDB(nn.Module):
    def __init__(self, channels=3, num_blocks=2, width=8, growth=4, doublings=2):
        super().__init__()
        blocks = [ThreeDense("RDB", width, growth, True) for _ in range(num_blocks)]
        ups = [layer for _ in range(doublings) for layer in (nn.Upsample(scale_factor=2), conv(width, width), nn.LeakyReLU(0.2))]
        tail = [conv(width, width), nn.LeakyReLU(0.2), conv(width, channels)]
        self.model = nn.Sequential(conv(channels, width), Shortcut(*blocks, conv(width, width)), *ups, *tail)

    def forward(self, x):
        return self.model(x)


class PlainBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.conv2 = conv(width, width), conv(width, width)

    def forward(self, x):
        return x + self.conv2(F.relu(self.conv1(x)))


class NamedMSRResNet(nn.Module):
    def __init__(self, trunk="body", up="upconv{}", hr="conv_hr", active=True, channels=3, num_blocks=3, width=6, steps=(2, 2)):
        super().__init__()
        self.trunk, self.hr, self.active, self.steps = trunk, hr, active, steps
        self.conv_first = conv(channels, width)
        self.add_module(trunk, nn.Sequential(*(PlainBlock(width) for _ in range(num_blocks))))
        self.ups = []
        for i, step in enumerate(steps):
            layer = conv(width, width * step**2)
            name, _, inner = up.format(i + 1).partition(".")
            self.add_module(name, nn.Sequential(OrderedDict({inner: layer})) if inner else layer)
            self.ups.append(name)
        self.add_module(hr, conv(width, width))
        self.conv_last = conv(width, channels)

    def forward(self, x):
        y = getattr(self, self.trunk)(lrelu(self.conv_first(x), 0.1))
        for name, step in zip(self.ups, self.steps, strict=True):
            y = F.pixel_shuffle(getattr(self, name)(y), step)
            y = lrelu(y, 0.1) if self.active else y
        y = self.conv_last(lrelu(getattr(self, self.hr)(y), 0.1))
        return y + F.interpolate(x, scale_factor=y.shape[-1] // x.shape[-1], mode="bilinear", align_corners=False)


def mmagic(**options):
    return NamedMSRResNet("trunk_net", "upsample{}.upsample_conv", active=False, **options)


def numbered_block(width, bias=False):
    norm = nn.BatchNorm2d
    return [conv(width, width, bias=bias), norm(width), nn.PReLU(), conv(width, width, bias=bias), norm(width)]


class Named(nn.Module):
    """A module under one name: `rcb.0.weight` is Named("rcb", Sequential(conv))."""

    def __init__(self, name, inner, skip=False):
        super().__init__()
        self.name, self.skip = name, skip
        self.add_module(name, inner)

    def forward(self, x):
        y = getattr(self, self.name)(x)
        return x + y if self.skip else y


class NumberedSRResNet(nn.Module):
    """Lornatang's: `names` of the outer modules; `block` is the name inside residual blocks; `flat` upsampling is from 2021."""

    def __init__(
        self,
        names=("conv1", "conv2", "conv3"),
        block="rcb",
        flat=False,
        channels=3,
        num_blocks=2,
        width=6,
        doublings=2,
        bias=False,
    ):
        super().__init__()
        self.names = names
        self.add_module(names[0], nn.Sequential(conv(channels, width, 9), nn.PReLU()))
        self.trunk = nn.Sequential(*(Named(block, nn.Sequential(*numbered_block(width, bias)), True) for _ in range(num_blocks)))
        self.add_module(names[1], nn.Sequential(conv(width, width, bias=bias), nn.BatchNorm2d(width)))
        ups = [[conv(width, 4 * width), nn.PixelShuffle(2), nn.PReLU()] for _ in range(doublings)]
        grouped = [Named("upsample_block", nn.Sequential(*up)) for up in ups]
        self.upsampling = nn.Sequential(*([layer for up in ups for layer in up] if flat else grouped))
        self.add_module(names[2], conv(width, channels, 9))

    def forward(self, x):
        x = getattr(self, self.names[0])(x)
        x = x + getattr(self, self.names[1])(self.trunk(x))
        return getattr(self, self.names[2])(self.upsampling(x))


class NamedBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.bn1, self.prelu = conv(width, width), nn.BatchNorm2d(width), nn.PReLU()
        self.conv2, self.bn2 = conv(width, width), nn.BatchNorm2d(width)

    def forward(self, x):
        return x + self.bn2(self.conv2(self.prelu(self.bn1(self.conv1(x)))))


class NamedUp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv, self.prelu = conv(width, 4 * width), nn.PReLU()

    def forward(self, x):
        return self.prelu(F.pixel_shuffle(self.conv(x), 2))


class FiveBlockSRResNet(nn.Module):
    """leftthomas's; that of January 2018 has a PReLU where later code has batch normalization."""

    def __init__(self, width=6, doublings=2, end=nn.BatchNorm2d):
        super().__init__()
        self.block1 = nn.Sequential(conv(3, width, 9), nn.PReLU())
        for i in range(2, 7):
            self.add_module(f"block{i}", NamedBlock(width))
        self.block7 = nn.Sequential(conv(width, width), nn.PReLU() if end is nn.PReLU else end(width))
        self.block8 = nn.Sequential(*(NamedUp(width) for _ in range(doublings)), conv(width, 3, 9))

    def forward(self, x):
        first = y = self.block1(x)
        for i in range(2, 7):
            y = getattr(self, f"block{i}")(y)
        return (torch.tanh(self.block8(first + self.block7(y))) + 1) / 2


class PlainSRCNN(nn.Module):
    """Takes an image that is upscaled already."""

    def __init__(self, channels=3, widths=(8, 6), kernels=(9, 1, 5)):
        super().__init__()
        self.conv1, self.conv2 = conv(channels, widths[0], kernels[0]), conv(*widths, kernels[1])
        self.conv3 = conv(widths[1], channels, kernels[2])

    def forward(self, x):
        return self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))


def random_weights(network):
    """For all tensors, including statistics; large enough that every layer matters."""
    torch.manual_seed(7)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + 0.5 if "running_var" in name else torch.randn_like(value) * 0.2)
    return network.eval()


def swinir(**options):
    """The authors' network, as spandrel has it."""
    sizes = {"embed_dim": 12, "depths": [2, 3], "num_heads": [3, 3], "window_size": 4, "mlp_ratio": 2, "img_size": 16}
    return SwinIR(**{**sizes, "img_range": 1.0, "resi_connection": "1conv", **options})


class Attention(nn.Module):
    def __init__(self, width, reduction):
        super().__init__()
        less = width // reduction
        layers = [nn.AdaptiveAvgPool2d(1), conv(width, less, 1), nn.ReLU(), conv(less, width, 1), nn.Sigmoid()]
        self.attention = nn.Sequential(*layers)

    def forward(self, x):
        return x * self.attention(x)


class AttentionBlock(nn.Module):
    def __init__(self, width, reduction):
        super().__init__()
        self.rcab = nn.Sequential(conv(width, width), nn.ReLU(), conv(width, width), Attention(width, reduction))

    def forward(self, x):
        return x + self.rcab(x)


class AttentionGroup(nn.Module):
    def __init__(self, width, blocks, reduction):
        super().__init__()
        self.residual_group = nn.Sequential(*(AttentionBlock(width, reduction) for _ in range(blocks)))
        self.conv = conv(width, width)

    def forward(self, x):
        return x + self.conv(self.residual_group(x))


class NamedRCAN(nn.Module):
    """BasicSR's names. Inside, images have the range 255 and DIV2K's mean is taken off."""

    def __init__(self, width=8, groups=2, blocks=3, reduction=4, steps=(2, 2)):
        super().__init__()
        self.conv_first = conv(3, width)
        self.body = nn.Sequential(*(AttentionGroup(width, blocks, reduction) for _ in range(groups)))
        self.conv_after_body, self.conv_last = conv(width, width), conv(width, 3)
        layers = [layer for step in steps for layer in (conv(width, width * step**2), nn.PixelShuffle(step))]
        self.upsample = nn.Sequential(*layers)

    def forward(self, x):
        mean = 255 * torch.tensor((0.4488, 0.4371, 0.4040)).view(1, 3, 1, 1)  # 32 bits: theirs rounds before it multiplies
        y = self.conv_first(255 * x - mean)
        return (self.conv_last(self.upsample(y + self.conv_after_body(self.body(y)))) + mean) / 255


NETWORKS = {
    "rcan BasicSR": (
        lambda: NamedRCAN(), 4,
        {"name": "spandrel", "arch": "RCAN", "n_feats": 8, "n_resgroups": 2, "n_resblocks": 3, "reduction": 4},
    ),
    "rcan BasicSR x3": (lambda: NamedRCAN(steps=(3,)), 3, {}),
    "rrdb new": (lambda: NamedRRDB(), 4, {"name": "rrdb", "num_blocks": 2, "width": 8, "growth": 4}),
    "rrdb new, grey, 3 blocks": (lambda: NamedRRDB(channels=1, num_blocks=3), 4, {"channels": 1, "num_blocks": 3}),
    "rrdb new x2": (lambda: NamedRRDB(fold=2), 2, {"unshuffle": True}),
    "rrdb new x1": (lambda: NamedRRDB(fold=4), 1, {"unshuffle": True}),
    "rrdb new x8": (lambda: NamedRRDB(doublings=3), 8, {}),
    "rrdb new x2 without folding": (lambda: NamedRRDB(doublings=1), 2, {"unshuffle": False}),
    "rrdb mid": (lambda: NamedRRDB(mid=True, growth=5), 4, {"growth": 5}),
    "rrdb mid x2": (lambda: NamedRRDB(mid=True, doublings=1), 2, {"unshuffle": False}),
    "rrdb old": (lambda: NumberedRRDB(), 4, {"name": "rrdb", "num_blocks": 2, "width": 8, "growth": 4}),
    "rrdb old, many blocks": (lambda: NumberedRRDB(num_blocks=11, width=4, growth=2), 4, {"num_blocks": 11}),
    "rrdb old x1": (lambda: NumberedRRDB(doublings=0), 1, {"unshuffle": False}),
    "rrdb old x2": (lambda: NumberedRRDB(doublings=1), 2, {"unshuffle": False}),
    "rrdb old x8": (lambda: NumberedRRDB(doublings=3), 8, {}),
    "msrresnet BasicSR": (lambda: NamedMSRResNet(), 4, {"num_blocks": 3, "width": 6, "shuffle_activation": True}),
    "msrresnet BasicSR x3": (lambda: NamedMSRResNet(steps=(3,)), 3, {}),
    "msrresnet KAIR": (lambda: NamedMSRResNet("recon_trunk", hr="HRconv"), 4, {"name": "msrresnet"}),
    "msrresnet MMagic": (lambda: mmagic(), 4, {"shuffle_activation": False}),
    "msrresnet MMagic x2": (lambda: mmagic(steps=(2,)), 2, {}),
    "srresnet Lornatang": (lambda: NumberedSRResNet(), 4, {"name": "srresnet", "num_blocks": 2, "width": 6, "output": "linear"}),
    "srresnet Lornatang x8, with biases": (lambda: NumberedSRResNet(doublings=3, bias=True), 8, {}),
    "srresnet Lornatang 2022": (lambda: NumberedSRResNet(("conv_block1", "conv_block2", "conv_block3")), 4, {"name": "srresnet"}),
    "srresnet Lornatang 2021": (
        lambda: NumberedSRResNet(("conv_block1", "conv_block2", "conv_block3"), "rc_block", True, doublings=3), 8, {},
    ),
    "srresnet leftthomas": (lambda: FiveBlockSRResNet(), 4, {"name": "srresnet", "num_blocks": 5, "output": "tanh"}),
    "srresnet leftthomas x2": (lambda: FiveBlockSRResNet(doublings=1), 2, {"output": "tanh", "trunk_end": "batch_norm"}),
    "srresnet leftthomas 2018, x2": (lambda: FiveBlockSRResNet(doublings=1, end=nn.PReLU), 2, {"trunk_end": "prelu"}),
    "swinir": (
        lambda: swinir(upscale=4, upsampler="pixelshuffle"), 4,
        {"name": "swinir", "width": 12, "depths": [2, 3], "heads": 3, "window": 4, "mlp_ratio": 2.0, "enlarge": "shuffle"},
    ),
    "swinir x3, wide": (lambda: swinir(upscale=3, upsampler="pixelshuffle", mlp_ratio=4), 3, {"mlp_ratio": 4.0}),
    "swinir x8, grey": (lambda: swinir(upscale=8, upsampler="pixelshuffle", in_chans=1), 8, {"channels": 1}),
    "swinir lightweight": (lambda: swinir(upscale=2, upsampler="pixelshuffledirect"), 2, {"enlarge": "direct"}),
    "swinir for real images": (lambda: swinir(upscale=4, upsampler="nearest+conv"), 4, {"enlarge": "nearest"}),
    "srvgg": (
        lambda: SRVGGNetCompact(num_feat=8, num_conv=3, upscale=4), 4,
        {"name": "srvgg", "width": 8, "num_blocks": 3, "activation": "prelu"},
    ),
    "srvgg x2, grey": (
        lambda: SRVGGNetCompact(num_in_ch=1, num_out_ch=1, num_feat=8, num_conv=2, upscale=2, act_type="leakyrelu"), 2,
        {"channels": 1, "num_blocks": 2, "activation": "leaky_relu"},
    ),
    "swinir large": (
        lambda: swinir(upscale=4, upsampler="nearest+conv", resi_connection="3conv"), 4, {"group_end": "3conv"},
    ),
    "srresnet leftthomas 2018, x8": (lambda: FiveBlockSRResNet(doublings=3, end=nn.PReLU), 8, {"output": "tanh"}),
}  # fmt: skip
