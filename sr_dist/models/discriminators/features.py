"""A discriminator on the features of a frozen network, with a head per layer (Projected GANs, Sauer et al. 2021).

`model` is a TorchScript file that makes feature maps (B, C, h, w) of images (B, 3, H, W) in [0, 1]: one, or a list, tuple or
dictionary of them. Or `arch` is a network of torchvision, whose `layers` name the outputs of its modules. Each head is a 1 x 1
convolution, a leaky ReLU and a 3 x 3 convolution to a logit per place. Coarse heads are repeated on the finest grid, so each head
counts the same in a mean over logits.

The papers mix the layers by random convolutions first, augment the images and normalize the heads; this one does not. The frozen
network is no submodule: it has no optimizer state, ZeRO does not partition it, and checkpoints do not repeat it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
import torchvision.models as published
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from sr_dist.core.batch import DiscriminatorOutput
from sr_dist.core.config import Names, OptionalPositive, OptionalText, Positive, Settings, Whole
from sr_dist.core.contracts import Discriminator
from sr_dist.core.errors import UserError, first_line, nearest, with_article
from sr_dist.core.precision import without_autocast
from sr_dist.models import torchscript
from sr_dist.models.imagenet import as_imagenet, load_published

KEY = "discriminator"
PROBE = 64  # the side of the images that tell how many channels each layer has
SEED = 0  # of random weights: the same on all ranks and after resuming, because no checkpoint has them


class Config(Settings):
    channels: Annotated[Literal[1, 3], Whole] = 3
    model: OptionalText = None
    """A TorchScript file that makes feature maps, in place of `arch`; it runs code."""
    arch: str = "vgg16"
    """A network of torchvision."""
    layers: Names = ("features.8", "features.15", "features.22")
    """The modules of `arch` whose outputs the heads see."""
    backbone: Literal["imagenet", "random"] = "imagenet"
    """The frozen weights of `arch`."""
    size: OptionalPositive = None
    """The side of the square images that the network takes; left out, it takes images as they are."""
    width: Positive = 64
    """Of the heads."""


def build(config: Config, scale: int) -> Discriminator:
    return FeatureDiscriminator(config)


def files(config: Config) -> list[str]:
    """The published file of the frozen network."""
    if config.model or config.backbone == "random" or config.arch not in published.list_models(module=published):
        return []
    return [PurePosixPath(published.get_model_weights(config.arch).DEFAULT.url).name]


class FeatureDiscriminator(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.size = config.size
        network = scripted(config.model) if config.model else of_torchvision(config)
        for parameter in network.parameters():  # TorchScript has no `requires_grad_`
            parameter.requires_grad_(False)
        self._frozen = (network.eval(),)  # in a tuple, it is no submodule
        self._name = f"{KEY}.model: '{config.model}'" if config.model else f"{KEY}.layers"
        with torch.no_grad():
            maps = self.features(torch.zeros(1, 3, config.size or PROBE, config.size or PROBE))
        self.heads = nn.ModuleList(head(features.shape[1], config.width) for features in maps)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FeatureDiscriminator:
        """The frozen network goes where this one goes, and gets its memory layout."""
        self._frozen[0]._apply(fn)
        return super()._apply(fn, recurse)

    def forward(self, images: Tensor) -> DiscriminatorOutput:
        if self.size:
            images = F.interpolate(images, (self.size,) * 2, mode="bicubic", antialias=True)
        logits = [one(features) for one, features in zip(self.heads, self.features(images), strict=True)]  # (B, 1, h, w)
        sides = tuple(max(logit.shape[side] for logit in logits) for side in (2, 3))
        repeated = [F.interpolate(logit, sides, mode="nearest") for logit in logits]
        return DiscriminatorOutput(torch.cat(repeated, 2).squeeze(1), None)  # (B, heads h, w)

    def features(self, images: Tensor) -> list[Tensor]:
        """Feature maps (B, C, h, w), in fp32: foreign code may hold numbers of that type."""
        with without_autocast(images):
            output: Any = self._frozen[0](images.float().expand(-1, 3, -1, -1))
        maps = list(output.values()) if isinstance(output, Mapping) else output
        maps = list(maps) if isinstance(maps, list | tuple) else [maps]
        for features in maps:
            if not isinstance(features, Tensor) or features.ndim != 4 or len(features) != len(images):
                result = tuple(features.shape) if isinstance(features, Tensor) else with_article(type(features).__name__)
                raise UserError(f"{self._name} returns {result} for {len(images)} images, not feature maps (B, C, h, w)")
        return maps


def head(inside: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, width, 1), nn.LeakyReLU(0.2), nn.Conv2d(width, 1, 3, padding=1))


def scripted(path: str) -> nn.Module:
    return torchscript.load(Path(path), f"{KEY}.model")


def of_torchvision(config: Config) -> nn.Module:
    names = published.list_models(module=published)
    if config.arch not in names:
        raise UserError(f"{KEY}.arch: torchvision has no network '{config.arch}'{nearest(config.arch, names)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = published.get_model(config.arch, weights=None)
    if not config.layers:
        raise UserError(f"{KEY}.layers: names no module of {config.arch}; name at least one")
    modules = [name for name, _ in network.named_modules() if name]
    for layer in config.layers:
        if layer not in modules:
            raise UserError(f"{KEY}.layers: {config.arch} has no module '{layer}'{nearest(layer, modules)}")
    if config.backbone == "imagenet":
        load_published(network, files(config)[0], f"{KEY}.backbone")
    try:
        return Normalized(create_feature_extractor(network, list(config.layers)))
    except Exception as problem:  # the tracer of torch.fx raises errors of many types
        raise UserError(f"{KEY}.layers: {config.arch} cannot be cut there: {first_line(problem)}") from None


class Normalized(nn.Module):
    """A network of torchvision that takes images in [0, 1]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.network(as_imagenet(images))
