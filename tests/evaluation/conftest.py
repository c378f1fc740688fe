"""Fixtures for tests of evaluation: stand-ins for the Inception file, and folders of generated photographs."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn


class Layers(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.AvgPool2d(23), nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class StandIn(nn.Module):
    """(B, 3, 299, 299) in [0, 255] -> (B, width). Its `layers` take [-1, 1], like those of the Inception file."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = Layers(width)
        for parameter in self.parameters():  # large weights, so that features differ between images
            nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(parameter.numel()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers((x - 128) / 128).flatten(1)


def save_stand_in(path: Path, width: int) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(StandIn(width).eval(), torch.rand(2, 3, 299, 299)).save(str(path))
    return path


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory) -> Path:
    """An extractor of 12 features per image."""
    return save_stand_in(tmp_path_factory.mktemp("extractor") / "toy.pt", 12)


@pytest.fixture
def inception(tmp_path, monkeypatch) -> Path:
    """A weights folder with a stand-in in place of the Inception file, accepted under its sha256."""
    from sr_dist.core import catalogue
    from sr_dist.core.files import sha256

    folder = tmp_path / "weights"
    folder.mkdir()
    path = save_stand_in(folder / "inception-2015-12-05.pt", 2048)
    monkeypatch.setenv("SR_DIST_WEIGHTS", str(folder))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("torch.hub._hub_dir", None)
    accepted = catalogue.weights_file(path.name).model_copy(update={"sha256": sha256(path)})
    monkeypatch.setattr(catalogue, "weights_file", lambda name: accepted)
    return path


@pytest.fixture
def photographs(tmp_path, make_photo):
    """`photographs(5, 40, 48)` -> a folder of 5 images of 40 x 48."""

    def make(count: int, height: int = 40, width: int = 48) -> Path:
        folder = tmp_path / f"photographs{count}"
        folder.mkdir()
        for i in range(count):
            Image.fromarray(make_photo(i, height, width)).save(folder / f"{i:02d}.png")
        return folder

    return make
