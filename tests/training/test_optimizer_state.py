from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from sr_dist.core.config import typed
from sr_dist.core.errors import UserError
from sr_dist.recipe.sections import Optimizer
from sr_dist.training import optimizer_state as states
from sr_dist.training.optimizer_state import Groups, build_optimizer, load_optimizer_state, optimizer_state
from sr_dist.training.optimizer_trial import try_out

SETTINGS = {
    "adam": {"name": "adam", "learning_rate": "1e-2", "betas": [0.5, 0.99]},
    "adam with decay": {"name": "adam", "learning_rate": "1e-2", "weight_decay": 0.1},
    "adamw": {"name": "adamw", "learning_rate": "1e-2", "weight_decay": 0.1},
    "sgd with momentum": {"name": "sgd", "learning_rate": "1e-2", "momentum": 0.9},
    "own, without a fused form": {"name": "training.without_fused_form", "learning_rate": "1e-3", "momentum": 0.9},
    "own, with Python numbers": {"name": "training.counted_momentum", "learning_rate": "1e-2"},
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


class NamedState:
    """All that a checkpoint holds of an optimizer."""

    def __init__(self, net, optimizer):
        self.net, self.optimizer, self.groups = net, optimizer, Groups(optimizer)

    def tensors(self):
        return optimizer_state(self.net, self.optimizer) | self.groups.changed()

    def load(self, state):
        load_optimizer_state(self.net, self.optimizer, state)
        self.groups.load(state)


@pytest.mark.parametrize("which", SETTINGS)
def test_loaded_state_continues_bit_for_bit(which):
    whole = network()
    train(whole, build_optimizer(whole, settings(which)), range(7))

    first = network()
    optimizer = build_optimizer(first, settings(which))
    state = NamedState(first, optimizer)
    train(first, optimizer, range(4))
    stored = save(state.tensors())  # as a checkpoint keeps them

    second = network()
    second.load_state_dict(first.state_dict())
    optimizer = build_optimizer(second, settings(which))
    NamedState(second, optimizer).load(load(stored))
    train(second, optimizer, range(4, 7))
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in whole.state_dict().items())


@pytest.mark.parametrize("which", ["adam", "adamw", "sgd with momentum", "own, with Python numbers"])
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
    state = NamedState(net, optimizer)
    assert state.tensors() == {}  # nothing before the first step
    train(net, optimizer, range(2))
    assert set(state.tensors()) == {f"{parameter}/{slot}" for parameter, _ in net.named_parameters() for slot in names}


def test_loaded_state_is_copied():
    net = network()
    optimizer = build_optimizer(net, settings("adam"))
    train(net, optimizer, range(2))
    named = NamedState(net, optimizer)
    state = {key: value.clone() for key, value in named.tensors().items()}
    before = {key: value.clone() for key, value in state.items()}
    named.load(state)
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
    assert not any(key.startswith("0.") for key in NamedState(net, optimizer).tensors())


def test_freezing_every_parameter_is_refused():
    with pytest.raises(UserError, match=r"init\.freeze: .*nothing to train"):
        build_optimizer(network().requires_grad_(False), settings("adam"))


def test_python_numbers_keep_their_kind_and_value():
    net = network()
    optimizer = build_optimizer(net, settings("own, with Python numbers"))
    named = NamedState(net, optimizer)
    train(net, optimizer, range(3))
    stored = save(named.tensors())

    other = network()
    again = build_optimizer(other, settings("own, with Python numbers"))
    NamedState(other, again).load(load(stored))
    ours, theirs = (o.state[p] for o, p in ((again, other[0].weight), (optimizer, net[0].weight)))
    for slot in ("count", "share", "even"):
        assert type(ours[slot]) is type(theirs[slot]) and ours[slot] == theirs[slot]
    for key in ("total", "updates"):
        assert again.param_groups[0][key] == optimizer.param_groups[0][key] != 0.1


def test_a_setting_that_the_optimizer_leaves_alone_is_not_saved():
    """So that resume.allow can change it. The loop sets the rate in each step."""
    net = network()
    optimizer = build_optimizer(net, settings("adam"))
    named = NamedState(net, optimizer)
    optimizer.param_groups[0]["lr"] = 0.5
    train(net, optimizer, range(2))
    assert not any(key.startswith(states.GROUPS) for key in named.tensors())


OWN = """
import torch
class Own(torch.optim.SGD):
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                {body}
def build(parameters, settings, fused):
    return Own(parameters, settings.learning_rate)
"""


def own(folder, monkeypatch, name, body):
    """The settings of an optimizer of one's own, whose update of a parameter is `body`."""
    package = folder / "ours"
    package.mkdir(exist_ok=True)
    (package / f"{name}.py").write_text(OWN.format(body=body))
    monkeypatch.syspath_prepend(str(folder))
    return typed(Optimizer, {"name": f"ours.{name}", "learning_rate": "1e-2"}, "optimizer")


@pytest.mark.parametrize(
    ("name", "body", "words"),
    [
        ("listed", "self.state[p].setdefault('past', []).append(0.5)", r"'past', a list, in its state"),
        ("shared", "self.state['step'] = 1", r"state that belongs to no parameter \('step'\)"),
        ("grouped", "group.setdefault('past', []).append(0.5)", r"'past', a list, in param_groups"),
    ],
)
def test_what_a_checkpoint_cannot_hold_is_refused_before_the_first_step(name, body, words, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=rf"optimizer\.name: Own keeps {words}"):
        try_out(own(tmp_path, monkeypatch, name, body), network(), torch.device("cpu"), zero=False)


WHOLE = {  # updates that depend on more than their own number
    "lamb": ("p -= group['lr'] * p.norm() / p.grad.norm() * p.grad", "other updates"),
    "muon": (
        "p -= group['lr'] * (p.grad @ p.grad.T @ p.grad if p.ndim == 2 else p.grad)",
        "other updates",
    ),
    "all": (
        "p -= group['lr'] * p.grad / sum(q.grad.norm() for q in group['params'])",
        "other updates",
    ),
    "row": (
        "self.state[p].setdefault('rows', torch.zeros(p.shape[0])).add_(1); p -= group['lr'] * p.grad",
        "'rows' of another shape than the parameter",
    ),
    "some": (
        "self.state[p]['ones'] = torch.ones_like(p) if p.ndim > 1 else None; p -= group['lr'] * p.grad",
        "other state for some parameters",
    ),
    "fails": ("p.grad.sum(dim=1 if p.shape[0] in (2, 9) else 0)", "ended in an error"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_an_optimizer_that_needs_whole_parameters_is_refused_under_zero(name, tmp_path, monkeypatch):
    body, words = WHOLE[name]
    settings = own(tmp_path, monkeypatch, f"whole_{name}", body)
    try_out(settings, network(), torch.device("cpu"), zero=False)  # welcome in one process and under DDP
    with pytest.raises(UserError, match=rf"optimizer\.name: .*whole_{name}\.py.*{words}"):
        try_out(settings, network(), torch.device("cpu"), zero=True)


@pytest.mark.parametrize("which", [which for which in SETTINGS if which.startswith("own")])
def test_an_optimizer_that_computes_each_number_by_itself_is_welcome_under_zero(which):
    try_out(settings(which), network(), torch.device("cpu"), zero=True)


def test_adagrad_is_welcome_under_zero(tmp_path, monkeypatch):
    """DeepSpeed builds it again, because it begins its state when it is built."""
    ada = own(tmp_path, monkeypatch, "ada", "pass")
    file = tmp_path / "ours" / "ada.py"
    file.write_text(file.read_text().replace("return Own(parameters, ", "return torch.optim.Adagrad(parameters, "))
    try_out(ada, network(), torch.device("cpu"), zero=True)


def test_a_file_without_states_per_weight_is_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"optimizer\.name: '.*countless\.py' has no states_per_weight\(settings\)"):
        states.states_per_weight(own(tmp_path, monkeypatch, "countless", "pass"))
