"""The parts of spandrel beyond its documented interface that models/generators/spandrel.py and models/spandrel_files.py use."""

from __future__ import annotations

import importlib
import inspect

import pytest
import torch
from torch import nn

from sr_dist.models.generators import spandrel as generator

spandrel = pytest.importorskip("spandrel")


@pytest.mark.parametrize("name", generator.ARCHS)
def test_classes_are_where_they_are_searched(name):
    """A folder per network with a class that is built by options; one of them is the scale, except where the class is."""
    arch = generator.ARCHS[name]
    for scale in arch.scales if "{}" in arch.place else arch.scales[:1]:
        network_class = generator.class_of(arch, name, scale)
        assert issubclass(network_class, nn.Module)
        parameters = inspect.signature(network_class).parameters
        assert name in ("RealCUGAN", "MMRealSR") or any(one in parameters for one in generator.SCALE), list(parameters)
        assert all(option in parameters for option in arch.defaults)


def test_the_network_of_a_file_states_its_options_and_its_size():
    """`hyperparameters` of the network, scale and channels of its description."""
    network = generator.class_of(generator.ARCHS["SPAN"], "SPAN", 4)(feature_channels=8, upscale=4, num_in_ch=3, num_out_ch=3)
    opened = spandrel.ModelLoader(device="cpu").load_from_state_dict(network.state_dict())
    assert (opened.scale, opened.input_channels, opened.output_channels) == (4, 3, 3)
    assert opened.model.hyperparameters["feature_channels"] == 8
    assert any(name.startswith("conv_1.eval_conv.") for name, _ in network.named_parameters())


def test_ipt_has_code_that_cuts_images():
    model = importlib.import_module("spandrel.architectures.IPT.__arch.model").Model
    assert list(inspect.signature(model.forward).parameters)[:3] == ["self", "x", "scale_idx"]
    network = generator.class_of(generator.ARCHS["IPT"], "IPT", 2)(n_feats=4, num_heads=2, num_layers=1, patch_size=12, scale=[2])
    assert (network.patch_size, network.rgb_range) == (12, 255) and isinstance(network.scale, list | int)


def test_the_registry_names_every_network():
    ids = {entry.architecture.id for entry in spandrel.MAIN_REGISTRY.architectures()}
    assert ids >= set(generator.ARCHS) - {"RealPLKSR"} and torch.is_grad_enabled()
