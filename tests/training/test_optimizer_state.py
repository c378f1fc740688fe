from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from sr_dist.core.config import typed
from sr_dist.core.errors import UserError
from sr_dist.recipe.sections import Optimizer
from sr_dist.training.optimizer_state import build_optimizer, load_optimizer_state, optimizer_state

SETTINGS = {
    "adam": {"name": "adam", "learning_rate": "1e-2", "betas": [0.5, 0.99]},
    "adam with decay": {"name": "adam", "learning_rate": "1e-2", "weight_decay": 0.1},
    "adamw": {"name": "adamw", "learning_rate": "1e-2", "weight_decay": 0.1},
    "sgd with momentum": {"name": "sgd", "learning_rate": "1e-2", "momentum": 0.9},
    "own, without a fused form": {"name": "training.without_fused_form", "learning_rate": "1e-3", "momentum": 0.9},
    "plain sgd": {"name": "sgd", "learning_rate": "1e-2", "weight_decay": 0.01},
}


@pytest.fixture(autouse=True)
def own_files(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))


def settings(which):
    return typed(Optimizer, SETTINGS[which], "optimizer")


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.PReLU(), nn.Conv2d(4, 2, 3))


def train(net, optimizer, steps):
    for step in steps:
        images = torch.rand(2, 2, 8, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        net(images).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("which", SETTINGS)
def test_loaded_state_continues_bit_for_bit(which):
    whole = network()
    train(whole, build_optimizer(whole, settings(which)), range(7))

    first = network()
    optimizer = build_optimizer(first, settings(which))
    train(first, optimizer, range(4))
    stored = save(optimizer_state(first, optimizer))  # as a checkpoint keeps them

    second = network()
    second.load_state_dict(first.state_dict())
    optimizer = build_optimizer(second, settings(which))
    load_optimizer_state(second, optimizer, load(stored))
    train(second, optimizer, range(4, 7))
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in whole.state_dict().items())


@pytest.mark.parametrize("which", ["adam", "adamw", "sgd with momentum"])
def test_the_state_matters(which):
    """Without the state the continuation differs, so the test above can fail."""
    whole, second = network(), network()
    train(whole, build_optimizer(whole, settings(which)), range(7))
    train(second, build_optimizer(second, settings(which)), range(4))
    train(second, build_optimizer(second, settings(which)), range(4, 7))
    assert any(not torch.equal(value, second.state_dict()[key]) for key, value in whole.state_dict().items())


@pytest.mark.parametrize(
    ("which", "names"),
    [("adam", {"step", "exp_avg", "exp_avg_sq"}), ("sgd with momentum", {"momentum_buffer"}), ("plain sgd", set())],
)
def test_the_state_is_named_by_parameter(which, names):
    net = network()
    optimizer = build_optimizer(net, settings(which))
    assert optimizer_state(net, optimizer) == {}  # nothing before the first step
    train(net, optimizer, range(2))
    assert set(optimizer_state(net, optimizer)) == {
        f"{parameter}/{slot}" for parameter, _ in net.named_parameters() for slot in names
    }


def test_loaded_state_is_copied():
    net = network()
    optimizer = build_optimizer(net, settings("adam"))
    train(net, optimizer, range(2))
    state = {key: value.clone() for key, value in optimizer_state(net, optimizer).items()}
    before = {key: value.clone() for key, value in state.items()}
    load_optimizer_state(net, optimizer, state)
    train(net, optimizer, range(2))
    assert all(torch.equal(value, before[key]) for key, value in state.items())


def test_settings_are_passed_to_torch():
    net = network()
    optimizer = build_optimizer(net, settings("adam"))
    assert isinstance(optimizer, torch.optim.Adam) and not isinstance(optimizer, torch.optim.AdamW)
    assert (optimizer.defaults["lr"], optimizer.defaults["betas"], optimizer.defaults["weight_decay"]) == (1e-2, (0.5, 0.99), 0)
    assert isinstance(build_optimizer(net, settings("adamw")), torch.optim.AdamW)
    sgd = build_optimizer(net, settings("sgd with momentum"))
    assert isinstance(sgd, torch.optim.SGD) and sgd.defaults["momentum"] == 0.9


def test_frozen_parameters_are_not_optimized():
    net = network()
    net[0].requires_grad_(False)
    frozen = net[0].weight.clone()
    optimizer = build_optimizer(net, settings("adamw"))  # its decay would shrink what it holds
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == [
        id(p) for p in (*net[1].parameters(), *net[2].parameters())
    ]
    train(net, optimizer, range(3))
    assert torch.equal(net[0].weight, frozen)
    assert not any(key.startswith("0.") for key in optimizer_state(net, optimizer))


def test_freezing_every_parameter_is_refused():
    with pytest.raises(UserError, match=r"init\.freeze: .*nothing to train"):
        build_optimizer(network().requires_grad_(False), settings("adam"))
