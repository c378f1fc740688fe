"""A plain network with random weights writes each layout; opening the file must give the same function."""

from __future__ import annotations

import pickle

import pytest
import torch
from foreign_networks import NETWORKS, FiveBlockSRResNet, NamedMSRResNet, NamedRRDB, NumberedRRDB, PlainSRCNN, random_weights
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from sr_dist.core.errors import UserError
from sr_dist.core.plugins import PACKAGES
from sr_dist.core.resize import imresize
from sr_dist.models import layouts, trained, weights_files
from sr_dist.models.metadata import generator_metadata


def equal(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("layout", NETWORKS)
@torch.no_grad()
def test_a_foreign_network_is_opened_as_the_same_function(layout, tmp_path):
    make, scale, options = NETWORKS[layout]
    theirs = random_weights(make())
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    ours = trained.open_generator(str(tmp_path / "theirs.pth"))
    assert ours.scale == scale and ours.name == "theirs"
    assert {key: ours.section[key] for key in options} == options
    lr = torch.rand(2, ours.channels, 8, 12, dtype=torch.float64)  # random weights make large numbers
    expected = theirs.double()(lr)
    assert expected.shape[-1] == 12 * scale and expected.std() > 1e-3
    equal(ours.network.double()(lr), expected)


@pytest.mark.parametrize(("channels", "kernels"), [(3, (9, 1, 5)), (1, (9, 5, 5)), (1, (9, 3, 5))])
@torch.no_grad()
def test_srcnn_needs_the_option_scale(channels, kernels, tmp_path):
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
    assert ours.section["kernels"] == list(kernels)


@torch.no_grad()
def test_old_files_without_the_counters_of_batch_normalization_load(tmp_path):
    theirs = random_weights(FiveBlockSRResNet())
    torch.save({k: v for k, v in theirs.state_dict().items() if "num_batches" not in k}, tmp_path / "old.pth")
    lr = torch.rand(1, 3, 6, 6)
    equal(trained.open_generator(str(tmp_path / "old.pth")).network(lr), theirs(lr))


def test_half_precision_files_become_fp32(tmp_path):
    torch.save(random_weights(NamedRRDB()).half().state_dict(), tmp_path / "half.pth")
    actual = trained.open_generator(str(tmp_path / "half.pth")).network
    assert {value.dtype for value in actual.state_dict().values()} == {torch.float32}


def test_a_foreign_safetensors_file_is_recognized(tmp_path):
    theirs = random_weights(NumberedRRDB())
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    lr = torch.rand(1, 3, 5, 5)
    equal(trained.open_generator(str(tmp_path / "theirs.safetensors")).network(lr), theirs(lr))


# ---- wrappers around tensors

RRDB = random_weights(NamedRRDB(num_blocks=1, width=4, growth=2)).state_dict()
OTHER = {name: value + 1 for name, value in RRDB.items()}


def prefixed(prefix, tensors=RRDB):
    return {prefix + name: value for name, value in tensors.items()}


def read_back(loaded, tmp_path, suffix=".pth", kind="generator"):
    path = tmp_path / f"wrapped{suffix}"
    torch.save(loaded, path)
    return weights_files.bare_names(weights_files.read(path, "k")[0], kind)


def same(actual, expected=RRDB):
    return actual.keys() == expected.keys() and all(torch.equal(actual[name], expected[name]) for name in expected)


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
    "compiled inputs DDP": prefixed("module._orig_mod."),
    "DDP inputs compile": {"state_dict": prefixed("_orig_mod.module.")},
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
def test_wrappers_are_removed(wrapper, tmp_path):
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


def test_the_discriminators_tensors_are_selected_for_a_discriminator(tmp_path):
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


def test_a_users_network_may_have_a_wrappers_name(tmp_path, monkeypatch):
    """Tensors that fit under their own names keep them."""
    (tmp_path / "toys").mkdir()
    (tmp_path / "toys" / "wrapped.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    section = {"name": "toys.wrapped"}
    toy = trained.build(PACKAGES["generator"], section, 1, "generator")
    checkpoint = tmp_path / "run" / "checkpoints" / "0000001"
    checkpoint.mkdir(parents=True)
    (tmp_path / "run" / "recipe.yaml").write_text("name: run\ngenerator: {name: toys.wrapped}\n")  # it may name one of the user's
    save_file(toy.state_dict(), checkpoint / "generator.ema.safetensors", generator_metadata(section, 1))
    assert "net.weight" in trained.open_generator(str(tmp_path / "run")).network.state_dict()
    with pytest.raises(UserError, match=r"'toys\.wrapped', which is not a part of sr_dist"):
        trained.open_generator(str(checkpoint / "generator.ema.safetensors"))
    save_file(toy.state_dict(), tmp_path / "without.safetensors")
    trained.load_starting_weights(toy, section, str(tmp_path / "without.safetensors"), "generator", "init.generator")


# ---- refusals


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
        assert "cut short" in refused(path) or "not a complete .safetensors" in refused(path)


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


@pytest.mark.parametrize("pickler", ["torch", "torch, old format", "pickle"])
def test_a_pickle_with_code_is_refused_and_runs_nothing(pickler, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = {"params": RRDB, "extra": Bomb()}
    if pickler == "pickle":
        (tmp_path / "bomb.pth").write_bytes(pickle.dumps({"a": Bomb()}))
    else:
        torch.save(loaded, tmp_path / "bomb.pth", _use_new_zipfile_serialization=pickler == "torch")
    message = refused(tmp_path / "bomb.pth")
    assert "mkdir" in message or pickler == "pickle"
    assert not (tmp_path / "went_off").exists()


def test_the_refusal_of_a_pickled_network_says_what_to_do(tmp_path):
    torch.save(nn.Conv2d(1, 1, 1), tmp_path / "whole.pth")
    assert "save only the network's state_dict()" in refused(tmp_path / "whole.pth")


@pytest.mark.parametrize("loaded", [[1, 2], torch.zeros(3), {}, {"epoch": 3}, {"a": {}, "b": {}}, {"a": {"x": 1}, "b": {"y": 2}}])
def test_the_refusal_of_a_file_without_named_tensors_lists_its_keys(loaded, tmp_path):
    torch.save(loaded, tmp_path / "empty.pth")
    assert "hold" in refused(tmp_path / "empty.pth")


def test_an_unknown_suffix_is_refused(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"x")
    assert "does not have the suffix of a weights file (.safetensors, .pth" in refused(tmp_path / "net.onnx")


def test_the_refusal_of_an_unknown_network_lists_the_known_ones(tmp_path):
    torch.save({"attn.qkv.weight": torch.zeros(3)}, tmp_path / "swin.pth")
    message = refused(tmp_path / "swin.pth")
    assert "'attn.qkv.weight'" in message and "msrresnet, rrdb, srcnn, srresnet" in message


def test_the_nearest_layout_is_named(tmp_path):
    plus = {**RRDB, "body.0.rdb1.conv1x1.weight": torch.zeros(2, 4, 1, 1)}  # ESRGAN+
    torch.save(plus, tmp_path / "plus.pth")
    message = refused(tmp_path / "plus.pth")
    assert f"nearest is rrdb (names of BasicSR), but 1 of {len(plus)} tensors" in message and "conv1x1" in message


def test_missing_tensors_are_counted(tmp_path):
    torch.save({name: value for name, value in RRDB.items() if "rdb2" not in name}, tmp_path / "part.pth")
    assert "10 tensors missing, 0 unexpected" in refused(tmp_path / "part.pth")
    torch.save({name: value for name, value in RRDB.items() if "conv_last" not in name}, tmp_path / "head.pth")
    assert "looks like rrdb (names of BasicSR), but it has no 'conv_last.weight'" in refused(tmp_path / "head.pth")


def test_shapes_that_no_network_of_ours_has_are_refused(tmp_path):
    torch.save(random_weights(NamedRRDB(channels=4)).state_dict(), tmp_path / "rgba.pth")
    assert "for 4 channels; only 1 and 3" in refused(tmp_path / "rgba.pth")
    torch.save({**RRDB, "conv_first.weight": torch.zeros(4, 7, 3, 3)}, tmp_path / "seven.pth")
    assert "it has 7 input and 3 output channels" in refused(tmp_path / "seven.pth")
    torch.save(random_weights(NumberedRRDB(doublings=4)).state_dict(), tmp_path / "x16.pth")
    assert "1, 2, 4 or 8, not 16" in refused(tmp_path / "x16.pth")


# ---- starting from foreign files

SECTION = {"name": "rrdb", "channels": 3, "num_blocks": 1, "width": 4, "growth": 2}


def ours(**changes):
    torch.manual_seed(0)
    return trained.build(PACKAGES["generator"], {**SECTION, **changes}, 4, "generator")


@pytest.mark.parametrize("layout", ["new", "old"])
def test_training_can_start_from_a_foreign_file(layout, tmp_path):
    theirs = random_weights(NamedRRDB(num_blocks=1, width=4, growth=2) if layout == "new" else NumberedRRDB(3, 1, 4, 2))
    torch.save({"params_ema": prefixed("module.", theirs.state_dict())}, tmp_path / "theirs.pth")
    network = ours()
    text = trained.load_starting_weights(network, SECTION, str(tmp_path / "theirs.pth"), "generator", "init.generator")
    assert text == f"generator starts from {tmp_path / 'theirs.pth'}"
    lr = torch.rand(1, 3, 4, 6)
    with torch.no_grad():
        equal(network(lr), theirs(lr))


def test_another_generator_than_the_recipes_is_refused(tmp_path):
    torch.save(random_weights(NamedMSRResNet("recon_trunk", hr="HRconv")).state_dict(), tmp_path / "other.pth")
    with pytest.raises(
        UserError,
        match=r"^init\.generator: '.*other\.pth' holds msrresnet, but generator\.name is rrdb; or let it be .*--generator=auto$",
    ):
        trained.load_starting_weights(ours(), SECTION, str(tmp_path / "other.pth"), "generator", "init.generator")


def test_options_that_no_tensor_shows_are_noted(tmp_path):
    torch.save(random_weights(FiveBlockSRResNet()).state_dict(), tmp_path / "left.pth")
    section = {"name": "srresnet", "channels": 3, "num_blocks": 5, "width": 6, "output": "linear"}
    network = trained.build(PACKAGES["generator"], section, 4, "generator")
    text = trained.load_starting_weights(network, section, str(tmp_path / "left.pth"), "generator", "init.generator")
    assert text.endswith("; it was made with output tanh, not linear")


def test_partial_loading_counts_matching_tensors_and_leaves_the_others(tmp_path):
    """A network with two blocks starts from one with one: 3 x 5 convolutions are new, with two tensors each."""
    torch.save({"params": RRDB}, tmp_path / "one.pth")
    network = ours(num_blocks=2, width=4)
    fresh = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(UserError, match="30 tensors missing, 0 unexpected, 0 of another shape"):
        trained.load_starting_weights(
            network, {**SECTION, "num_blocks": 2}, str(tmp_path / "one.pth"), "generator", "init.generator"
        )
    text = trained.load_starting_weights(
        network, {**SECTION, "num_blocks": 2}, str(tmp_path / "one.pth"), "generator", "init.generator", partial=True
    )
    assert (
        "42 of 72 tensors matched (" in text
        and "30 tensors missing, 0 unexpected, 0 of another shape (such as 'body.1.rdb1" in text
    )
    actual = network.state_dict()
    assert all(torch.equal(actual[name], RRDB.get(name, fresh[name])) for name in actual)


def test_partial_loading_compares_shapes(tmp_path):
    grey = random_weights(NamedRRDB(channels=1, num_blocks=1, width=4, growth=2)).state_dict()
    torch.save({**grey, "conv_extra.weight": torch.zeros(1)}, tmp_path / "grey.pth")
    text = trained.load_starting_weights(ours(), SECTION, str(tmp_path / "grey.pth"), "generator", "init.generator", partial=True)
    assert (
        "39 of 42 tensors matched" in text and "0 tensors missing, 1 unexpected, 3 of another shape (such as 'conv_extra" in text
    )


def test_partial_loading_of_nothing_is_refused(tmp_path):
    torch.save({"attn.weight": torch.zeros(3)}, tmp_path / "swin.pth")
    with pytest.raises(UserError, match=r"init\.generator: '.*swin\.pth' has nothing that fits: 0 of 42 tensors matched"):
        trained.load_starting_weights(ours(), SECTION, str(tmp_path / "swin.pth"), "generator", "init.generator", partial=True)


# ---- compared with spandrel


@pytest.mark.parametrize("case", ["new", "new x2", "new x1", "mid", "old", "old x2", "old, grey"])
@torch.no_grad()
def test_spandrel_reads_the_same_function(case, tmp_path):
    """spandrel assumes a growth of 32."""
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
    reference = spandrel.ModelLoader().load_from_file(tmp_path / "theirs.pth")
    actual = trained.open_generator(str(tmp_path / "theirs.pth"))
    assert (reference.scale, reference.input_channels) == (actual.scale, actual.channels)
    lr = torch.rand(1, actual.channels, 8, 12)
    equal(actual.network(lr), reference.model.eval()(lr))


def test_every_layout_is_tested():
    tested = {layouts.recognize(make().state_dict(), "f", "k").layout.title for make, _, _ in NETWORKS.values()}
    assert {layout.title for layout in layouts.LAYOUTS} - tested == {"srresnet (our names)", "srcnn (conv1 to conv3)"}
