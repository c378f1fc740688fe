"""The submodules of the lpips package that losses/content/lpips.py uses."""

from __future__ import annotations

import warnings

import pytest
import torch
from lpips import LPIPS


@pytest.fixture(scope="module")
def metric() -> LPIPS:
    """Without published weights, as `pnet_rand=True` builds it; the linear layers are those of the package."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the package uses torchvision's old interface
        return LPIPS(net="alex", pnet_rand=True, verbose=False).eval().requires_grad_(False)


def test_net_has_the_slices_of_alexnet(metric):
    """slice1.0.weight is features.0.weight of torchvision's file, and so on."""
    names = {name.split(".", 1)[1] for name in metric.net.state_dict()}
    assert names == {f"{layer}.{kind}" for layer in (0, 3, 6, 8, 10) for kind in ("weight", "bias")}


def test_scaling_layer_net_and_lins_give_the_metric(metric):
    """mean over pixels of lin(squared difference of unit features), summed over five levels."""
    torch.manual_seed(0)
    x, y = torch.rand(2, 2, 3, 64, 64) * 2 - 1

    def unit_features(images: torch.Tensor) -> list[torch.Tensor]:
        return [level / level.square().sum(1, keepdim=True).sqrt() for level in metric.net(metric.scaling_layer(images))]

    pairs = list(zip(metric.lins, unit_features(x), unit_features(y), strict=True))
    assert len(pairs) == 5
    distance = sum(weigh((a - b).square()).mean((1, 2, 3)) for weigh, a, b in pairs)
    torch.testing.assert_close(distance, metric(x, y).flatten())
