"""Any classifier of torchvision by its name, such as `arch: mobilenet_v3_small`.

`weights: imagenet` starts from torchvision's best weights, except the head. Images are normalized with ImageNet's mean and
deviation.
"""

from __future__ import annotations

import warnings
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import torchvision.models as published
from pydantic import AfterValidator
from torch import Tensor, nn

from sr_dist.core.config import Positive, Settings, Whole
from sr_dist.core.contracts import Classifier
from sr_dist.core.errors import nearest
from sr_dist.models.imagenet import as_imagenet, load_published

NAMES = published.list_models(module=published)
SECOND_HEADS = ("googlenet", "inception_v3")  # they return several tensors in training unless these heads are left out


def _known(arch: str) -> str:
    if arch not in NAMES:
        raise ValueError(f"torchvision has no classifier '{arch}'{nearest(arch, NAMES)}")
    return arch


class Config(Settings):
    arch: Annotated[str, AfterValidator(_known)] = "resnet18"
    outputs: Positive = 1000
    """Taken from the shards."""
    channels: Annotated[Literal[1, 3], Whole] = 3
    weights: Literal["imagenet", "none"] = "none"


def build(config: Config) -> Classifier:
    network = Published(config)
    if config.weights == "imagenet":
        load_published(network.network, files(config)[0], "classifier")
    return network


def files(config: Config) -> list[str]:
    """The published files that training starts from."""
    address = published.get_model_weights(config.arch).DEFAULT.url
    return [PurePosixPath(address).name] if config.weights == "imagenet" else []


class Published(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        one_head: dict[str, Any] = {"aux_logits": False} if config.arch in SECOND_HEADS else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # about how those two are initialized
            self.network = published.get_model(config.arch, weights=None, num_classes=config.outputs, **one_head)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, outputs)."""
        return self.network(as_imagenet(images))
