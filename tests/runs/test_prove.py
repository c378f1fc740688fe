"""`prove` as a user runs it, with real launches: green for a network and a loss of one's own, red for a planted mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from processes import finish_with, launch

pytestmark = pytest.mark.slow
NET = '''
"""A residual network of one's own."""

import torch.nn.functional as F
from torch import Tensor, nn

from sr_dist.core.config import Positive, Settings


class Config(Settings):
    width: Positive = 8


def build(config: Config, scale: int) -> nn.Module:
    return Net(config.width, scale)


class Net(nn.Module):
    def __init__(self, width: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        layers = nn.Conv2d(3, width, 3, padding=1), nn.PReLU(), nn.Conv2d(width, 3 * scale**2, 3, padding=1)
        self.body = nn.Sequential(*layers)

    def forward(self, lr: Tensor) -> Tensor:
        enlarged = F.interpolate(lr, scale_factor=self.scale, mode="bilinear")
        return enlarged + F.pixel_shuffle(self.body(lr), self.scale)
'''
LOSS = '''
"""The error of differences between neighbours."""

from torch import Tensor, nn

from sr_dist.core.batch import Batch
from sr_dist.core.config import Settings


class Config(Settings):
    pass


def build(config: Config) -> nn.Module:
    return Edges()


class Edges(nn.Module):
    def forward(self, sr: Tensor, batch: Batch) -> Tensor:
        return (sr.diff(dim=3) - batch.hr.diff(dim=3)).abs().mean()
'''
WRONG = '''
"""The same network with a buffer that depends on the rank."""

import os

import torch
from mine.net import Config, Net


def build(config: Config, scale: int) -> torch.nn.Module:
    return Wrong(config.width, scale)


class Wrong(Net):
    def __init__(self, width: int, scale: int) -> None:
        super().__init__(width, scale)
        self.register_buffer("gain", torch.tensor(1 + 0.01 * int(os.environ.get("RANK", "0"))), persistent=False)

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        return super().forward(lr) * self.gain
'''
NOISY = '''
"""The same network, and a factor that no seed gives."""

import random

from torch import Tensor, nn
from mine.net import Config, Net


def build(config: Config, scale: int) -> nn.Module:
    return Noisy(config.width, scale)


class Noisy(Net):
    def forward(self, lr: Tensor) -> Tensor:
        return super().forward(lr) * (1 + 0.1 * random.random())
'''
DROPPED = NOISY.replace("super().forward(lr) * (1 + 0.1 * random.random())", "nn.functional.dropout(super().forward(lr), 0.1)")
RECIPE = {
    "discriminator": "{name: patch, widths: [8, 12], norm: none}",
    "objective.content": "{mse: 1.0, mine.edges: 0.5}",
}


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "mine").mkdir()
    for name, code in (("net", NET), ("edges", LOSS), ("wrong", WRONG), ("noisy", NOISY), ("dropped", DROPPED)):
        (tmp_path / "mine" / f"{name}.py").write_text(code)
    return tmp_path


def table_of(folder: Path, code: int, *words: str) -> tuple[dict[str, dict], str]:
    """The rows of `prove` by name, and what it prints."""
    options = [f"--{key}={value}" for key, value in RECIPE.items()]
    process = launch(0, "sr_dist.prove", "srgan_mse_x4", *options, "--out=out", *words, cwd=folder)
    out, _ = finish_with(code, process)
    rows = json.loads((folder / "out" / "prove.json").read_text())["rows"]
    assert all(row["name"] in out for row in rows)
    return {row["name"]: row for row in rows}, out


def test_a_network_and_a_loss_of_ones_own_are_proven(folder):
    rows, out = table_of(folder, 0, "--generator={name: mine.net}", "--backends=ddp,zero2")
    assert "every step is the same, and every planted fault was seen" in out
    for name in ("ddp, 2 ranks", "ddp, 2 ranks, 2 micro-batches", "zero2, 2 ranks", "zero2, 2 ranks, 2 micro-batches"):
        assert rows[name]["verdict"] == "equal" and rows[name]["weights"] <= 1e-4 and rows[name]["losses"] <= 1e-4
    for name in ("one process", "ddp, 2 ranks", "zero2, 2 ranks"):
        continued = rows[f"{name}, continued"]
        assert (continued["verdict"], continued["weights"], continued["losses"]) == ("equal", 0, 0)
    faults = [row for name, row in rows.items() if name.startswith("planted")]
    assert len(faults) == 3 and all(row["verdict"] == "seen" and row["weights"] > 1e-3 for row in faults)
    run = folder / "out" / "zero2" / "moved"
    assert json.loads((run / "prove.json").read_text())["state"] == []


def test_a_buffer_that_depends_on_the_rank_is_seen(folder):
    rows, out = table_of(folder, 1, "--generator={name: mine.wrong}", "--backends=ddp")
    assert rows["ddp, 2 ranks"]["verdict"] == "DIFFERENT" and "rows are wrong" in out
    assert rows["ddp, 2 ranks"]["weights"] > 1e-3 and rows["ddp, 2 ranks"]["note"].startswith("furthest: ")
    assert rows["one process, continued"]["verdict"] == "equal"  # the mistake needs ranks


def test_random_numbers_that_no_seed_gives_are_the_reason_and_no_design(folder):
    rows, out = table_of(folder, 1, "--generator={name: mine.noisy}", "--backends=ddp")
    assert "by design" not in out
    for name in ("one process, continued", "ddp, 2 ranks"):
        assert rows[name]["verdict"] == "DIFFERENT" and "random numbers that no seed gives" in rows[name]["note"]
    assert rows["one process, 2 micro-batches"]["verdict"] == "DIFFERENT"


def test_dropout_is_the_reason_beside_the_tensor_that_is_furthest(folder):
    rows, _ = table_of(folder, 1, "--generator={name: mine.dropped}", "--backends=ddp")
    assert rows["one process, continued"]["verdict"] == "equal"  # the rank's numbers are those of the step
    row = rows["ddp, 2 ranks"]
    assert row["verdict"] == "DIFFERENT" and row["note"].startswith("furthest: ")
    assert row["note"].endswith("; random numbers inside a step depend on the rank and the micro-batch: set dropout to 0")
