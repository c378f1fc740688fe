"""ResNet-18, torchvision's, under its own names: whatever weights fit torchvision's fit this one.

`stem: small` is for images of some 64 pixels: the first convolution is 3 x 3 and keeps the size, and no pooling follows.
`weights: imagenet` starts from the published weights, but for what differs: the head, and the first convolution of the small
stem. Images are normalised as ImageNet's were; grey ones count as three equal channels.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from sr_dist.core.config import Settings, Whole
from sr_dist.core.launch_env import Launch
from sr_dist.models import limits
from sr_dist.models.imagenet import as_imagenet, load_published

FILE = "resnet18-f37072fd.pth"


class Config(Settings):
    outputs: Annotated[int, Field(gt=0)] = 1000  # taken from the shards
    channels: Annotated[Literal[1, 3], Whole] = 3
    stem: Literal["imagenet", "small"] = "imagenet"
    weights: Literal["imagenet", "none"] = "none"


def build(config: Config) -> nn.Module:
    network = ResNet18(config)
    if config.weights == "imagenet":
        load_published(network, FILE, "classifier")
    return network


def files(config: Config) -> list[str]:
    """The published files that training starts from."""
    return [FILE] if config.weights == "imagenet" else []


def refuses(config: Config, launch: Launch) -> str | None:
    return limits.batch_norm(launch)


class ResNet18(ResNet):
    def __init__(self, config: Config) -> None:
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes=config.outputs)
        if config.stem == "small":
            self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
            self.maxpool = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, outputs)."""
        return super().forward(as_imagenet(images))
