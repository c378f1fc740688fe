"""Every layout is written by a plain network of its own, with random weights, and must come back as the same function."""

from __future__ import annotations

import pickle
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from sr_dist.core.errors import UserError
from sr_dist.core.plugins import PACKAGES
from sr_dist.core.resize import imresize
from sr_dist.models import layouts, trained, weights_files

# ---- plain networks in the layouts of others


def conv(inside, outside, kernel=3, bias=True):
    return nn.Conv2d(inside, outside, kernel, padding=kernel // 2, bias=bias)


def lrelu(x, slope=0.2):
    return F.leaky_relu(x, slope)


class Dense(nn.Module):
    """Five convolutions; `wrapped` puts each in a Sequential, as the code of 2018 does."""

    def __init__(self, width, growth, wrapped=False):
        super().__init__()
        for k in range(1, 6):
            layer = conv(width + (k - 1) * growth, growth if k < 5 else width)
            self.add_module(f"conv{k}", nn.Sequential(layer) if wrapped else layer)

    def forward(self, x):
        seen = x
        for k in range(1, 5):
            seen = torch.cat([seen, lrelu(getattr(self, f"conv{k}")(seen))], 1)
        return x + 0.2 * self.conv5(seen)


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


class Holding(nn.Module):
    """A module under one name: `rcb.0.weight` is Holding("rcb", Sequential(conv))."""

    def __init__(self, name, inner, skip=False):
        super().__init__()
        self.name, self.skip = name, skip
        self.add_module(name, inner)

    def forward(self, x):
        y = getattr(self, self.name)(x)
        return x + y if self.skip else y


class NumberedSRResNet(nn.Module):
    """Lornatang's: `names` of the three outer modules and of the residual blocks' inside; `flat` upsampling is of 2021."""

    def __init__(
        self,
        names=("conv1", "conv2", "conv3"),
        inside="rcb",
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
        self.trunk = nn.Sequential(
            *(Holding(inside, nn.Sequential(*numbered_block(width, bias)), True) for _ in range(num_blocks))
        )
        self.add_module(names[1], nn.Sequential(conv(width, width, bias=bias), nn.BatchNorm2d(width)))
        ups = [[conv(width, 4 * width), nn.PixelShuffle(2), nn.PReLU()] for _ in range(doublings)]
        grouped = [Holding("upsample_block", nn.Sequential(*up)) for up in ups]
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
    """leftthomas's."""

    def __init__(self, width=6, doublings=2):
        super().__init__()
        self.block1 = nn.Sequential(conv(3, width, 9), nn.PReLU())
        for i in range(2, 7):
            self.add_module(f"block{i}", NamedBlock(width))
        self.block7 = nn.Sequential(conv(width, width), nn.BatchNorm2d(width))
        self.block8 = nn.Sequential(*(NamedUp(width) for _ in range(doublings)), conv(width, 3, 9))

    def forward(self, x):
        first = y = self.block1(x)
        for i in range(2, 7):
            y = getattr(self, f"block{i}")(y)
        return (torch.tanh(self.block8(first + self.block7(y))) + 1) / 2


class PlainSRCNN(nn.Module):
    """Takes an image that is enlarged already."""

    def __init__(self, channels=3, widths=(8, 6), kernels=(9, 1, 5)):
        super().__init__()
        self.conv1, self.conv2 = conv(channels, widths[0], kernels[0]), conv(*widths, kernels[1])
        self.conv3 = conv(widths[1], channels, kernels[2])

    def forward(self, x):
        return self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))


def random_weights(network):
    """Of all tensors, statistics too; large enough that every layer matters."""
    torch.manual_seed(7)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + 0.5 if "running_var" in name else torch.randn_like(value) * 0.2)
    return network.eval()


NETWORKS = {
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
    "srresnet leftthomas x2": (lambda: FiveBlockSRResNet(doublings=1), 2, {"output": "tanh"}),
}  # fmt: skip


def equal(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("layout", NETWORKS)
@torch.no_grad()
def test_a_foreign_network_comes_back_as_the_same_function(layout, tmp_path):
    make, scale, options = NETWORKS[layout]
    theirs = random_weights(make())
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    ours = trained.open_generator(str(tmp_path / "theirs.pth"))
    assert ours.scale == scale and ours.name == "theirs"
    assert {key: ours.generator[key] for key in options} == options
    lr = torch.rand(2, ours.channels, 8, 12)
    expected = theirs(lr)
    assert expected.shape[-1] == 12 * scale and expected.std() > 1e-3
    equal(ours.network(lr), expected)


@pytest.mark.parametrize(("channels", "kernels"), [(3, (9, 1, 5)), (1, (9, 5, 5)), (1, (9, 3, 5))])
@torch.no_grad()
def test_srcnn_needs_to_be_told_its_scale(channels, kernels, tmp_path):
    theirs = random_weights(PlainSRCNN(channels, kernels=kernels))
    path = tmp_path / "srcnn_x3.pth"
    torch.save(theirs.state_dict(), path)
    with pytest.raises(
        UserError, match=r"^METHOD: '.*srcnn_x3\.pth' is srcnn, whose tensors do not show the scale; give --scale=N"
    ):
        trained.open_generator(str(path), "METHOD")
    ours = trained.open_generator(str(path), scale=3)
    lr = torch.rand(1, channels, 7, 5)
    equal(ours.network(lr), theirs(imresize(lr, 3)))
    assert ours.generator["kernels"] == list(kernels)


@torch.no_grad()
def test_old_files_without_the_counts_of_batch_normalisation_load(tmp_path):
    theirs = random_weights(FiveBlockSRResNet())
    torch.save({k: v for k, v in theirs.state_dict().items() if "num_batches" not in k}, tmp_path / "old.pth")
    lr = torch.rand(1, 3, 6, 6)
    equal(trained.open_generator(str(tmp_path / "old.pth")).network(lr), theirs(lr))


def test_half_precision_files_become_fp32(tmp_path):
    torch.save(random_weights(NamedRRDB()).half().state_dict(), tmp_path / "half.pth")
    found = trained.open_generator(str(tmp_path / "half.pth")).network
    assert {value.dtype for value in found.state_dict().values()} == {torch.float32}


def test_a_safetensors_file_of_others_is_recognised_too(tmp_path):
    theirs = random_weights(NumberedRRDB())
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    lr = torch.rand(1, 3, 5, 5)
    equal(trained.open_generator(str(tmp_path / "theirs.safetensors")).network(lr), theirs(lr))


# ---- what is put around tensors

RRDB = random_weights(NamedRRDB(num_blocks=1, width=4, growth=2)).state_dict()
OTHER = {name: value + 1 for name, value in RRDB.items()}


def prefixed(prefix, tensors=RRDB):
    return {prefix + name: value for name, value in tensors.items()}


def read_back(loaded, tmp_path, suffix=".pth", kind="generator"):
    path = tmp_path / f"wrapped{suffix}"
    torch.save(loaded, path)
    return weights_files.bare_names(weights_files.read(path, "k")[0], kind)


def same(found, expected=RRDB):
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


WRAPPED = {
    "nothing": RRDB,
    "params": {"params": RRDB},
    "params_ema is preferred": {"params": OTHER, "params_ema": RRDB},
    "params-ema": {"params": OTHER, "params-ema": RRDB},
    "an ema that is empty": {"params": RRDB, "params_ema": {}},
    "an ema that is none": {"state_dict": RRDB, "ema_state_dict": None, "epoch": 3, "best_psnr": 28.1},
    "state_dict": {"state_dict": RRDB, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]}, "epoch": 7},
    "model_state_dict": {"model_state_dict": RRDB},
    "model": {"model": RRDB, "iter": torch.tensor(5)},
    "net": {"net": RRDB},
    "a lone dictionary": {"weights": RRDB, "note": "x"},
    "two dictionaries deep": {"model": {"state_dict": RRDB}},
    "DataParallel": prefixed("module."),
    "torch.compile": prefixed("_orig_mod."),
    "compiled inside DDP": prefixed("module._orig_mod."),
    "DDP inside compile": {"state_dict": prefixed("_orig_mod.module.")},
    "an averaged model": {"ema_state_dict": {"n_averaged": torch.tensor(9), **prefixed("module.")}},
    "fp8 or deepspeed": prefixed("_forward_module."),
    "netG": prefixed("netG."),
    "MMagic": {"state_dict": {**prefixed("generator."), **prefixed("discriminator.", OTHER), "step_counter": torch.tensor(1)}},
    "MMagic with its average": {
        "meta": {"iter": 3},
        "state_dict": {
            **prefixed("generator.", OTHER), **prefixed("generator_ema.module."), "generator_ema.steps": torch.tensor(3),
            **prefixed("discriminator.", OTHER), **prefixed("perceptual_loss.vgg.", OTHER),
        },
    },
    "lightning": {"state_dict": prefixed("model."), "hyper_parameters": {"lr": 1e-4}},
}  # fmt: skip


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_wrappers_are_taken_off(wrapper, tmp_path):
    assert same(read_back(WRAPPED[wrapper], tmp_path))


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".pth.tar", ".bin"])
def test_every_suffix_of_a_pickle_is_read(suffix, tmp_path):
    assert same(read_back({"state_dict": RRDB}, tmp_path, suffix))


def test_torch_s_old_file_format_is_read(tmp_path):
    torch.save({"params": RRDB}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same(weights_files.read(tmp_path / "old.pth", "k")[0])


def test_the_numbers_of_the_first_names_are_kept(tmp_path):
    """`model.` is a wrapper's prefix or the whole network's name."""
    old = random_weights(NumberedRRDB()).state_dict()
    assert same(read_back({"state_dict": prefixed("module.", old)}, tmp_path), old)
    assert same(read_back(prefixed("model.", old), tmp_path), old)


@given(
    prefixes=st.lists(
        st.sampled_from(["module.", "_orig_mod.", "_forward_module.", "model.", "generator.", "netG."]), max_size=4
    ),
    envelopes=st.lists(st.sampled_from([*weights_files.ENVELOPES, "anything"]), max_size=4),
    noise=st.booleans(),
)
def test_wrappers_in_any_order_and_depth(prefixes, envelopes, noise):
    tensors = RRDB
    for prefix in prefixes:
        tensors = prefixed(prefix, tensors)
    loaded = tensors
    for envelope in envelopes:
        loaded = {envelope: loaded, **({"epoch": 3, "best": None} if noise else {})}
    assert same(weights_files.bare_names(weights_files.unwrapped(loaded, "f", "k")[0]))


def test_a_critic_is_chosen_for_a_critic(tmp_path):
    loaded = {"state_dict": {**prefixed("generator.", OTHER), **prefixed("discriminator.")}}
    assert same(read_back(loaded, tmp_path, kind="discriminator"))


TOY = """
from torch import nn
from sr_dist.core.config import Settings

class Config(Settings):
    pass

class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.net(x)

def build(config, scale):
    return Toy()
"""


def test_a_network_of_one_s_own_may_be_called_like_a_wrapper(tmp_path, monkeypatch):
    """What fits as it is keeps its names."""
    (tmp_path / "toys").mkdir()
    (tmp_path / "toys" / "wrapped.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    section = {"name": "toys.wrapped"}
    toy = trained.build(PACKAGES["generator"], section, 1, "generator")
    save_file(toy.state_dict(), tmp_path / "said.safetensors", trained.metadata(section, 1))
    assert "net.weight" in trained.open_generator(str(tmp_path / "said.safetensors")).network.state_dict()
    save_file(toy.state_dict(), tmp_path / "unsaid.safetensors")
    trained.start(toy, section, str(tmp_path / "unsaid.safetensors"), "generator", "init.generator")


# ---- what is refused


def refused(path, **options):
    with pytest.raises(UserError) as caught:
        trained.open_generator(str(path), "METHOD", **options)
    message = str(caught.value)
    assert message.startswith(f"METHOD: '{path}' ") and "\n" not in message
    return message


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_a_cut_pickle_is_refused_by_name(new_format, share, tmp_path):
    path = tmp_path / "cut.pth"
    torch.save({"params": RRDB}, path, _use_new_zipfile_serialization=new_format)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert "cut short" in refused(path)


@given(cut=st.floats(0, 0.9999))
def test_a_file_cut_anywhere_is_refused_by_name(cut, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cut")
    for suffix, save in ((".pth", torch.save), (".safetensors", save_file)):
        path = folder / f"cut{suffix}"
        save(RRDB, path)
        data = path.read_bytes()
        path.write_bytes(data[: int(cut * len(data))])
        assert "cut short" in refused(path) or "no whole .safetensors" in refused(path)


@pytest.mark.parametrize(
    "data", [b"not weights", b"\x89PNG\r\n\x1a\n" + bytes(60), b"<html>404</html>", b"PK\x03\x04" + bytes(90)]
)
def test_other_files_are_refused_by_name(data, tmp_path):
    for suffix in (".pth", ".ckpt", ".safetensors"):
        (tmp_path / f"other{suffix}").write_bytes(data)
        refused(tmp_path / f"other{suffix}")


class Bomb:
    def __reduce__(self):
        import os

        return os.mkdir, ("went_off",)


@pytest.mark.parametrize("how", ["torch", "torch, old format", "pickle"])
def test_a_pickle_with_code_is_refused_and_runs_nothing(how, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = {"params": RRDB, "extra": Bomb()}
    if how == "pickle":
        (tmp_path / "bomb.pth").write_bytes(pickle.dumps({"a": Bomb()}))
    else:
        torch.save(loaded, tmp_path / "bomb.pth", _use_new_zipfile_serialization=how == "torch")
    message = refused(tmp_path / "bomb.pth")
    assert "mkdir" in message or how == "pickle"
    assert not (tmp_path / "went_off").exists()


def test_a_pickled_network_is_refused_with_what_to_do(tmp_path):
    torch.save(nn.Conv2d(1, 1, 1), tmp_path / "whole.pth")
    assert "save the network's state_dict() alone" in refused(tmp_path / "whole.pth")


@pytest.mark.parametrize("loaded", [[1, 2], torch.zeros(3), {}, {"epoch": 3}, {"a": {}, "b": {}}, {"a": {"x": 1}, "b": {"y": 2}}])
def test_a_file_without_named_tensors_says_what_it_holds(loaded, tmp_path):
    torch.save(loaded, tmp_path / "empty.pth")
    assert "hold" in refused(tmp_path / "empty.pth")


def test_an_unknown_suffix_is_refused(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"x")
    assert "no suffix of a weights file (.safetensors, .pth" in refused(tmp_path / "net.onnx")


def test_an_unknown_network_is_named_with_what_is_known(tmp_path):
    torch.save({"attn.qkv.weight": torch.zeros(3)}, tmp_path / "swin.pth")
    message = refused(tmp_path / "swin.pth")
    assert "'attn.qkv.weight'" in message and "msrresnet, rrdb, srcnn, srresnet" in message


def test_the_nearest_layout_is_said(tmp_path):
    plus = {**RRDB, "body.0.rdb1.conv1x1.weight": torch.zeros(2, 4, 1, 1)}  # ESRGAN+
    torch.save(plus, tmp_path / "plus.pth")
    message = refused(tmp_path / "plus.pth")
    assert f"nearest is rrdb (names of BasicSR), but 1 of {len(plus)} tensors" in message and "conv1x1" in message


def test_what_is_missing_is_counted(tmp_path):
    torch.save({name: value for name, value in RRDB.items() if "rdb2" not in name}, tmp_path / "part.pth")
    assert "10 tensors missing, 0 unexpected" in refused(tmp_path / "part.pth")
    torch.save({name: value for name, value in RRDB.items() if "conv_last" not in name}, tmp_path / "head.pth")
    assert "looks like rrdb (names of BasicSR), but it has no 'conv_last.weight'" in refused(tmp_path / "head.pth")


def test_shapes_that_no_network_of_ours_has_are_refused(tmp_path):
    torch.save(random_weights(NamedRRDB(channels=4)).state_dict(), tmp_path / "rgba.pth")
    assert "for 4 channels; only 1 and 3" in refused(tmp_path / "rgba.pth")
    torch.save({**RRDB, "conv_first.weight": torch.zeros(4, 7, 3, 3)}, tmp_path / "seven.pth")
    assert "7 channels come in and 3 go out" in refused(tmp_path / "seven.pth")
    torch.save(random_weights(NumberedRRDB(doublings=4)).state_dict(), tmp_path / "x16.pth")
    assert "1, 2, 4 or 8, not 16" in refused(tmp_path / "x16.pth")


# ---- starting from them

SECTION = {"name": "rrdb", "channels": 3, "num_blocks": 1, "width": 4, "growth": 2}


def ours(**changes):
    torch.manual_seed(0)
    return trained.build(PACKAGES["generator"], {**SECTION, **changes}, 4, "generator")


@pytest.mark.parametrize("layout", ["new", "old"])
def test_training_can_start_from_a_foreign_file(layout, tmp_path):
    theirs = random_weights(NamedRRDB(num_blocks=1, width=4, growth=2) if layout == "new" else NumberedRRDB(3, 1, 4, 2))
    torch.save({"params_ema": prefixed("module.", theirs.state_dict())}, tmp_path / "theirs.pth")
    network = ours()
    said = trained.start(network, SECTION, str(tmp_path / "theirs.pth"), "generator", "init.generator")
    assert said == f"generator starts from {tmp_path / 'theirs.pth'}"
    lr = torch.rand(1, 3, 4, 6)
    with torch.no_grad():
        equal(network(lr), theirs(lr))


def test_another_generator_than_the_recipe_s_is_refused(tmp_path):
    torch.save(random_weights(NamedMSRResNet("recon_trunk", hr="HRconv")).state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"^init\.generator: '.*other\.pth' holds msrresnet, but generator\.name is rrdb$"):
        trained.start(ours(), SECTION, str(tmp_path / "other.pth"), "generator", "init.generator")


def test_options_that_no_tensor_shows_are_noted(tmp_path):
    torch.save(random_weights(FiveBlockSRResNet()).state_dict(), tmp_path / "left.pth")
    section = {"name": "srresnet", "channels": 3, "num_blocks": 5, "width": 6, "output": "linear"}
    network = trained.build(PACKAGES["generator"], section, 4, "generator")
    said = trained.start(network, section, str(tmp_path / "left.pth"), "generator", "init.generator")
    assert said.endswith("; it was made with output tanh, not linear")


def test_partial_loading_counts_what_fits_and_leaves_the_rest(tmp_path):
    """A network with two blocks starts from one with one: 3 x 5 convolutions are new, with two tensors each."""
    torch.save({"params": RRDB}, tmp_path / "one.pth")
    network = ours(num_blocks=2, width=4)
    fresh = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(UserError, match="30 tensors missing, 0 unexpected, 0 of another shape"):
        trained.start(network, {**SECTION, "num_blocks": 2}, str(tmp_path / "one.pth"), "generator", "init.generator")
    said = trained.start(
        network, {**SECTION, "num_blocks": 2}, str(tmp_path / "one.pth"), "generator", "init.generator", partial=True
    )
    assert (
        "42 of 72 tensors matched (" in said
        and "30 tensors missing, 0 unexpected, 0 of another shape (such as 'body.1.rdb1" in said
    )
    found = network.state_dict()
    assert all(torch.equal(found[name], RRDB.get(name, fresh[name])) for name in found)


def test_partial_loading_goes_by_shape_too(tmp_path):
    grey = random_weights(NamedRRDB(channels=1, num_blocks=1, width=4, growth=2)).state_dict()
    torch.save({**grey, "conv_extra.weight": torch.zeros(1)}, tmp_path / "grey.pth")
    said = trained.start(ours(), SECTION, str(tmp_path / "grey.pth"), "generator", "init.generator", partial=True)
    assert (
        "39 of 42 tensors matched" in said and "0 tensors missing, 1 unexpected, 3 of another shape (such as 'conv_extra" in said
    )


def test_partial_loading_of_nothing_is_refused(tmp_path):
    torch.save({"attn.weight": torch.zeros(3)}, tmp_path / "swin.pth")
    with pytest.raises(UserError, match=r"init\.generator: '.*swin\.pth' has nothing that fits: 0 of 42 tensors matched"):
        trained.start(ours(), SECTION, str(tmp_path / "swin.pth"), "generator", "init.generator", partial=True)


# ---- the judge from outside


@pytest.mark.parametrize("case", ["new", "new x2", "new x1", "mid", "old", "old x2", "old, grey"])
@torch.no_grad()
def test_spandrel_reads_the_same_function(case, tmp_path):
    """spandrel takes a growth of 32 for granted."""
    spandrel = pytest.importorskip("spandrel")
    theirs = {
        "new": lambda: NamedRRDB(growth=32),
        "new x2": lambda: NamedRRDB(growth=32, fold=2),
        "new x1": lambda: NamedRRDB(growth=32, fold=4),
        "mid": lambda: NamedRRDB(growth=32, mid=True),
        "old": lambda: NumberedRRDB(growth=32),
        "old x2": lambda: NumberedRRDB(growth=32, doublings=1),
        "old, grey": lambda: NumberedRRDB(channels=1, growth=32),
    }[case]()
    torch.save(random_weights(theirs).state_dict(), tmp_path / "theirs.pth")
    judge = spandrel.ModelLoader().load_from_file(tmp_path / "theirs.pth")
    found = trained.open_generator(str(tmp_path / "theirs.pth"))
    assert (judge.scale, judge.input_channels) == (found.scale, found.channels)
    lr = torch.rand(1, found.channels, 8, 12)
    equal(found.network(lr), judge.model.eval()(lr))


def test_every_layout_is_tested():
    tested = {layouts.recognise(make().state_dict(), "f", "k").layout.title for make, _, _ in NETWORKS.values()}
    assert {layout.title for layout in layouts.LAYOUTS} - tested == {"srresnet (our names)", "srcnn (conv1 to conv3)"}
