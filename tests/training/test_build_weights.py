"""Starting weights of a run: loaded whole, in part or not at all, with a line in the log."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from sr_dist.core.errors import UserError
from sr_dist.core.plugins import PACKAGES
from sr_dist.data import data_checks
from sr_dist.models import trained
from sr_dist.models.metadata import generator_metadata
from sr_dist.recipe import checks
from sr_dist.training import build

SRUGAN = {"name": "srugan", "widths": [8, 8], "num_blocks": 1, "num_dense_blocks": 1, "reduction": 2}


class Lines(list):
    say = list.append


@pytest.fixture
def deeper(tmp_path):
    """A generator with one dense block per width more than the tiny recipe's: 6 convolutions, 12 tensors."""
    torch.manual_seed(3)
    section = {**SRUGAN, "num_dense_blocks": 2}
    network = trained.build(PACKAGES["generator"], section, 2, "generator")
    save_file(network.state_dict(), tmp_path / "deeper.safetensors", generator_metadata(section, 2))
    return tmp_path / "deeper.safetensors", network.state_dict()


def network_of(write_recipe, log, **init):
    loaded = checks.complete(data_checks.load(write_recipe(init=init), {}))
    return build.phase_network(loaded, "generator", False, log).state_dict()


def test_partial_weights_are_counted_in_the_log(write_recipe, deeper):
    path, tensors = deeper
    with pytest.raises(UserError, match=r"init\.generator: .*0 tensors missing, 12 unexpected"):
        network_of(write_recipe, Lines(), generator=str(path))
    log = Lines()
    loaded = network_of(write_recipe, log, generator=str(path), partial=True)
    assert all(torch.equal(value, tensors[name]) for name, value in loaded.items())
    assert (
        len(log) == 1
        and f"generator starts from {path}: {len(loaded)} of {len(loaded)} tensors matched (100.0% of the values)" in log[0]
    )
    assert "0 tensors missing, 12 unexpected" in log[0] and "it was made with num_dense_blocks 2, not 1" in log[0]


def test_loading_is_strict_by_default_and_names_the_file(write_recipe, tmp_path):
    network = trained.build(PACKAGES["generator"], SRUGAN, 2, "generator")
    path = tmp_path / "same.safetensors"
    save_file(network.state_dict(), path, generator_metadata(SRUGAN, 2))
    log = Lines()
    loaded = network_of(write_recipe, log, generator=str(path))
    assert all(torch.equal(value, loaded[name]) for name, value in network.state_dict().items())
    assert log == [f"generator starts from {path}"]
