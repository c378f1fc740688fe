"""Distance between VGG19 features of sr and hr: phi_i,j, the j-th convolution before the i-th pooling.

`conv5_4` is SRGAN's VGG5.4 (after activation, mean square, features / 12.75) and, with `activated: false, distance: l1,
divide: 1`, ESRGAN's. Images are normalized with ImageNet's mean and deviation. SR-UGAN's author divides the features of Keras'
VGG19, which has images of 0 to 255, by the same 12.75, so his term has another weight.
"""

from __future__ import annotations

import logging
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from sr_dist.core.batch import Batch
from sr_dist.core.config import Settings
from sr_dist.core.contracts import ContentTerm
from sr_dist.core.errors import UserError, first_line, nearest
from sr_dist.models import pretrained
from sr_dist.models.imagenet import MEAN, STD

FILE = "vgg19-dcbb9e9d.pth"
LAYERS = [f"conv{i}_{j}" for i, count in enumerate((2, 2, 4, 4, 4), 1) for j in range(1, count + 1)]


def _weighted(value: object) -> object:
    return {value: 1.0} if isinstance(value, str) else value


class Config(Settings):
    layers: Annotated[dict[str, float], BeforeValidator(_weighted)] = {"conv5_4": 1.0}
    """A layer, or layers with weights."""
    activated: bool = True
    """Features after the ReLU."""
    distance: Literal["mse", "l1"] = "mse"
    divide: Annotated[float, Field(gt=0)] = 12.75
    """The divisor of features."""
    weights: Literal["imagenet", "random"] = "imagenet"


def build(config: Config) -> ContentTerm:
    for name in config.layers:
        if name not in LAYERS:
            raise UserError(f"objective.content.vgg.layers: no layer '{name}'{nearest(name, LAYERS)}")
    return VGGDistance(config)


def files(config: Config) -> list[str]:
    """The published weights files that this term needs."""
    return [FILE] if config.weights == "imagenet" else []


def _places(activated: bool) -> dict[str, int]:
    """The position of each layer's output in torchvision's list of modules: conv, ReLU, conv, ReLU, ..., pooling."""
    places, at = {}, 0
    for i, count in enumerate((2, 2, 4, 4, 4), 1):
        for j in range(1, count + 1):
            places[f"conv{i}_{j}"] = at + (1 if activated else 0)
            at += 2
        at += 1
    return places


class VGGDistance(nn.Module):
    follows_autocast = True

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        places = _places(config.activated)
        self.taps = {places[name]: weight for name, weight in config.layers.items()}
        self.features = _vgg19_features(config)[: max(self.taps) + 1].eval().requires_grad_(False)
        for place, module in enumerate(self.features):
            if place - 1 in self.taps and isinstance(module, nn.ReLU):
                module.inplace = False  # in place, it would overwrite a tapped layer's output
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))

    def train(self, mode: bool = True) -> VGGDistance:
        return super().train(False)  # always frozen

    def forward(self, sr: Tensor, batch: Batch) -> Tensor:
        with torch.no_grad():
            target = self._tapped(batch.hr)
        distance = F.mse_loss if self.config.distance == "mse" else F.l1_loss
        terms = [
            weight * distance(a / self.config.divide, b / self.config.divide)
            for (weight, a), (_, b) in zip(self._tapped(sr), target, strict=True)
        ]
        return torch.stack(terms).sum()

    def _tapped(self, images: Tensor) -> list[tuple[float, Tensor]]:
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        x = (images - self.mean) / self.std
        features = []
        for place, module in enumerate(self.features):
            x = module(x)
            if place in self.taps:
                features.append((self.taps[place], x.float()))
        return features


def _vgg19_features(config: Config) -> nn.Sequential:
    from torchvision.models import vgg19  # takes seconds

    network = vgg19(weights=None)
    if config.weights == "random":
        logging.getLogger("sr_dist").warning("the vgg term has RANDOM weights: good for trying the machinery, not for results")
        return network.features
    path = pretrained.find(FILE, "objective.content.vgg")
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as problem:
        raise UserError(f"objective.content.vgg: '{path}' is no VGG19 weights file: {first_line(problem)}") from None
    return network.features
