"""An optimizer of one's own is tried before training: does it go on as it would have, where a fresh one has loaded its state?"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import run
from torch import nn

from sr_dist.core.config import typed
from sr_dist.core.errors import UserError
from sr_dist.recipe.sections import Optimizer
from sr_dist.training.optimizer_trial import try_out

OWN = """
import random
import numpy
import torch

COUNTS = {{}}

class Own(torch.optim.SGD):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.count, self.past, self.draw = 0, {{}}, torch.Generator().manual_seed(0)
        self.slow = [p.detach().clone() for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure=None):
        self.count += 1
        for group in self.param_groups:
            for number, p in enumerate(group["params"]):
                {body}

def build(parameters, settings, fused):
    return Own(parameters, settings.learning_rate)
"""
LOST = {
    "momentum": "self.past[number] = 0.9 * self.past.get(number, 0) + p.grad; p -= group['lr'] * self.past[number]",
    "for_convolutions": (  # it fails on weights of two dimensions, and is tried with the network's own
        "assert p.ndim != 2; self.past[number] = 0.9 * self.past.get(number, 0) + p.grad; p -= group['lr'] * self.past[number]"
    ),
    "count": "p -= group['lr'] / self.count * p.grad",
    "in_the_module": "COUNTS[number] = COUNTS.get(number, 0) + 1; p -= group['lr'] / COUNTS[number] * p.grad",
    "generator": "p -= group['lr'] * p.grad * torch.rand((), generator=self.draw)",
    "lookahead": (
        "p -= group['lr'] * p.grad; "
        "self.count % 5 or self.slow[number].lerp_(p, 0.5); "
        "self.count % 5 or p.copy_(self.slow[number])"
    ),
    "half": (  # a part of its state comes back, and it takes that for all
        "state = self.state[p]; state or self.past.update({number: torch.zeros_like(p)}); "
        "state['updates'] = state.get('updates', 0) + 1; "
        "self.past[number] = 0.9 * self.past[number] + p.grad; p -= group['lr'] * self.past[number]"
    ),
}
WELCOME = {
    "plain": "p -= group['lr'] * p.grad",
    "torch_numbers": "p -= group['lr'] * p.grad * torch.rand_like(p)",
    "python_numbers": "p -= group['lr'] * p.grad * random.random()",
    "numpy_numbers": "p -= group['lr'] * p.grad * numpy.random.rand()",
    "in_the_group": "group['n'] = group.get('n', 0) + number; p -= group['lr'] / (1 + group['n']) * p.grad",
    "in_the_state": "s = self.state[p]; s['v'] = 0.9 * s.get('v', 0) + p.grad; p -= group['lr'] * s['v']",
}
NETWORK = nn.Conv2d(2, 3, 3)
TORCH = ("Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")


def written(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: str) -> Optimizer:
    """The settings of an optimizer whose file has this code."""
    (folder / "tried").mkdir()
    (folder / "tried" / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(folder))
    return typed(Optimizer, {"name": f"tried.{name}", "learning_rate": "1e-2", "momentum": 0.9}, "optimizer")


def test_an_optimizer_that_fails_in_a_later_step_is_refused(tmp_path, monkeypatch):
    settings = written(tmp_path, monkeypatch, "sixth", OWN.format(body="assert self.count < 6; p -= group['lr'] * p.grad"))
    with pytest.raises(UserError, match="ended in an error when it was tried"):
        try_out(settings, NETWORK, torch.device("cpu"), zero=False)


@pytest.mark.parametrize("name", LOST)
def test_state_that_a_resume_would_lose_is_refused(name, tmp_path, monkeypatch):
    settings = written(tmp_path, monkeypatch, name, OWN.format(body=LOST[name]))
    with pytest.raises(UserError) as refused:
        try_out(settings, NETWORK, torch.device("cpu"), zero=False)
    for words in ("optimizer.name: ", f"{name}.py' keeps state outside of optimizer.state", "which a resume would lose"):
        assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", WELCOME)
def test_state_that_a_checkpoint_holds_and_random_numbers_are_welcome(name, tmp_path, monkeypatch):
    """And what is drawn after the trial is what would have been drawn without it."""
    settings = written(tmp_path, monkeypatch, name, OWN.format(body=WELCOME[name]))
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    try_out(settings, NETWORK, torch.device("cpu"), zero=False)
    assert torch.get_rng_state().equal(before[0]) and random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()


@pytest.mark.parametrize("name", TORCH)
def test_optimizers_of_torch_are_welcome(name, tmp_path, monkeypatch):
    code = f"import torch\ndef build(weights, settings, fused): return torch.optim.{name}(weights, settings.learning_rate)\n"
    try_out(written(tmp_path, monkeypatch, name.lower(), code), NETWORK, torch.device("cpu"), zero=False)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_ours_are_welcome_under_another_name(name, tmp_path, monkeypatch):
    code = f"from sr_dist.training.optimizers.{name} import build\n"
    try_out(written(tmp_path, monkeypatch, f"our_{name}", code), NETWORK, torch.device("cpu"), zero=False)


BROKEN = {
    "lbfgs": ("torch.optim.LBFGS(parameters)", "ended in an error when it was tried with a few weights (", "'closure'"),
    "nothing": ("None", "build returned a NoneType, not an optimizer", "torch.optim.Optimizer"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_optimizer_that_cannot_work_is_one_line_before_the_run_folder(name, tmp_path, monkeypatch, write_recipe):
    returned, *expected = BROKEN[name]
    written(tmp_path, monkeypatch, name, f"import torch\ndef build(parameters, settings, fused):\n    return {returned}\n")
    recipe = write_recipe(optimizer={"name": f"tried.{name}"})
    _, err = run(0, "sr_dist.train", recipe, cwd=tmp_path, expect=2)
    assert err.startswith("error: optimizer.name: '") and err.count("\n") == 1
    assert all(words in err for words in expected)
    assert not (tmp_path / "runs").exists()


def test_an_optimizer_for_the_shapes_of_the_network_alone_is_welcome(tmp_path, monkeypatch):
    body = "assert p.shape[0] == 5; p -= group['lr'] * p.grad"
    settings = written(tmp_path, monkeypatch, "fives", OWN.format(body=body))
    try_out(settings, nn.Conv2d(1, 5, 1), torch.device("cpu"), zero=False)
    with pytest.raises(UserError, match=r"fives\.py' ended in an error when it was tried with a few weights \(AssertionError\)"):
        try_out(settings, nn.Conv2d(1, 4, 1), torch.device("cpu"), zero=False)
