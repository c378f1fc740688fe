"""The parts of clean-fid that evaluation/distances/extractor.py and tools/distance_speed.py use."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cleanfid import inception_pytorch
from cleanfid.fid import frechet_distance
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer
from torch import Tensor, nn


class Layers(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((1, 2, 3)).unsqueeze(1).expand(-1, 2048).contiguous()


class Inception(nn.Module):
    """In the layout of the published file: InceptionV3W calls its `layers`."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = Layers()

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def test_inception_v3_w_opens_the_file_of_a_folder(tmp_path):
    """`InceptionV3W(folder, download=False)` opens inception-2015-12-05.pt. [0, 255] -> 2048 features."""
    torch.jit.script(Inception()).save(str(tmp_path / "inception-2015-12-05.pt"))
    network = InceptionV3W(str(tmp_path), download=False)
    features = network(torch.full((2, 3, 299, 299), 255.0))
    torch.testing.assert_close(features, torch.full((2, 2048), 127 / 128))


def test_inception_v3_w_does_not_download(tmp_path):
    with pytest.raises((ValueError, OSError, RuntimeError)):
        InceptionV3W(str(tmp_path), download=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore::UserWarning")  # clean-fid uses torchvision's old interface
def test_load_state_dict_from_url(monkeypatch):
    """`InceptionV3` of `inception_pytorch` gets its weights by this name of its module, which we replace."""
    calls = []

    def load(*arguments: object, **options: object) -> dict[str, Tensor]:
        calls.append(arguments)
        raise FileNotFoundError

    monkeypatch.setattr(inception_pytorch, "load_state_dict_from_url", load)
    with pytest.raises(FileNotFoundError):
        inception_pytorch.InceptionV3(output_blocks=[3], resize_input=False)
    assert len(calls) == 1


@pytest.mark.parametrize("mode", ["clean", "legacy_pytorch"])
def test_build_resizer(mode):
    """Resizes (H, W, 3) uint8 to (299, 299, 3) float in [0, 255]."""
    resized = build_resizer(mode)(np.full((40, 60, 3), 200, np.uint8))
    assert resized.shape == (299, 299, 3)
    assert np.allclose(resized, 200, atol=1e-3)


def test_frechet_distance():
    """Of unit Gaussians with means 0 and 2 in each of 3 dimensions: 3 x 2**2. It calls scipy.linalg.sqrtm(disp=False)."""
    assert frechet_distance(np.zeros(3), np.eye(3), np.full(3, 2.0), np.eye(3)) == pytest.approx(12.0)
