"""Starting weights of a training run: loaded whole, in part or not at all, and said in the log."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from sr_dist import recipe
from sr_dist.engine import setup
from sr_dist.errors import UserError
from sr_dist.models import weights

SRUGAN = {"name": "srugan", "widths": [8, 8], "num_blocks": 1, "num_dense_blocks": 1, "reduction": 2}


class Lines(list):
    say = list.append


@pytest.fixture
def deeper(tmp_path):
    """A generator with one dense block per width more than the tiny recipe's: 6 convolutions, 12 tensors."""
    torch.manual_seed(3)
    section = {**SRUGAN, "num_dense_blocks": 2}
    network = weights.build(weights.GENERATORS, section, 2, "generator")
    save_file(network.state_dict(), tmp_path / "deeper.safetensors", weights.metadata(section, 2))
    return tmp_path / "deeper.safetensors", network.state_dict()


def network_of(write_recipe, log, **init):
    loaded = recipe.complete(recipe.load(write_recipe(init=init), {}))
    return setup.phase_network(loaded, "generator", False, log).state_dict()


def test_partial_weights_are_counted_in_the_log(write_recipe, deeper):
    path, tensors = deeper
    with pytest.raises(UserError, match=r"init\.generator: .*0 tensors missing, 12 unexpected"):
        network_of(write_recipe, Lines(), generator=str(path))
    log = Lines()
    found = network_of(write_recipe, log, generator=str(path), partial=True)
    assert all(torch.equal(value, tensors[name]) for name, value in found.items())
    assert (
        len(log) == 1
        and f"generator starts from {path}: {len(found)} of {len(found)} tensors matched (100.0% of the values)" in log[0]
    )
    assert "0 tensors missing, 12 unexpected" in log[0] and "it was made with num_dense_blocks 2, not 1" in log[0]


def test_strict_is_the_default_and_says_the_file(write_recipe, tmp_path):
    network = weights.build(weights.GENERATORS, SRUGAN, 2, "generator")
    path = tmp_path / "same.safetensors"
    save_file(network.state_dict(), path, weights.metadata(SRUGAN, 2))
    log = Lines()
    found = network_of(write_recipe, log, generator=str(path))
    assert all(torch.equal(value, found[name]) for name, value in network.state_dict().items())
    assert log == [f"generator starts from {path}"]
