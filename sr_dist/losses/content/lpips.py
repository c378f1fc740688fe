"""LPIPS 0.1 as a loss: the distance of unit-length features, with weights learned from human judgements.

    d = sum_l E_hw[w_l . (n(phi_l(sr)) - n(phi_l(hr)))^2],  n(x) = x / |x| over channels

phi are AlexNet's or VGG16's features; w comes with the lpips package. Images are mapped to [-1, 1]; grey ones become three equal
channels. The package's own forward has no finite gradient where all features at a position are zero.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sr_dist.core.batch import Batch
from sr_dist.core.config import Settings
from sr_dist.core.contracts import ContentTerm
from sr_dist.core.errors import UserError, first_line
from sr_dist.core.precision import without_autocast
from sr_dist.models import pretrained
from sr_dist.recipe.sections import Recipe

FILES = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}
SMALLEST = 31  # pixels: below, AlexNet's last pooling is empty


class Config(Settings):
    net: Literal["alex", "vgg"] = "alex"
    weights: Literal["imagenet", "random"] = "imagenet"


def build(config: Config) -> ContentTerm:
    return LPIPSDistance(config)


def files(config: Config) -> list[str]:
    """The published weights files that this term needs."""
    return [FILES[config.net]] if config.weights == "imagenet" else []


def check(config: Config, recipe: Recipe) -> None:
    if recipe.data.crop and recipe.data.crop < SMALLEST:
        raise UserError(
            f"objective.content.lpips: needs images of {SMALLEST} pixels or more, but data.crop is {recipe.data.crop}"
        )


class LPIPSDistance(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.weights == "imagenet":
            metric = published(config.net, "objective.content.lpips")
        else:
            metric = _package(config.net)
            logging.getLogger("sr_dist").warning("the lpips term has RANDOM features: good for trying the machinery only")
        self.scale, self.features, self.lins = metric.scaling_layer, metric.net, metric.lins
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> LPIPSDistance:
        return super().train(False)  # always frozen

    def forward(self, sr: Tensor, batch: Batch) -> Tensor:
        if min(sr.shape[-2:]) < SMALLEST:
            height, width = sr.shape[-2:]
            raise UserError(f"objective.content.lpips: needs images of {SMALLEST} pixels or more, not {height} x {width}")
        with without_autocast(sr):  # squares of small differences of unit vectors
            with torch.no_grad():
                target = self._unit_features(batch.hr)
            pairs = zip(self.lins, self._unit_features(sr), target, strict=True)
            return torch.stack([weigh((a - b).square()).mean() for weigh, a, b in pairs]).sum()

    def _unit_features(self, images: Tensor) -> list[Tensor]:
        x = images.float().expand(-1, 3, -1, -1) * 2 - 1
        levels = self.features(self.scale(x))
        return [x / (x.square().sum(1, keepdim=True) + 1e-20).sqrt() for x in levels]  # (B, C, h, w)


def published(net: str, key: str) -> Any:
    """The package's own metric on published features; `key` names the recipe key in errors."""
    path = pretrained.find(FILES[net], key)  # first, because the package spends seconds on random weights
    metric = _package(net)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)  # torchvision's `features.N`; `slice1.N`, ... here
        metric.net.load_state_dict({name: tensors[f"features.{name.split('.', 1)[1]}"] for name in metric.net.state_dict()})
    except Exception as problem:
        raise UserError(f"{key}: '{path}' is no file of {net} weights: {first_line(problem)}") from None
    return metric.eval().requires_grad_(False)


def _package(net: str) -> Any:
    from lpips import LPIPS  # takes seconds

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the package uses torchvision's old interface
        return LPIPS(net=net, pnet_rand=True, verbose=False)  # else torchvision would download weights
