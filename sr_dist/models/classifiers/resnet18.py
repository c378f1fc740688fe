"""torchvision's ResNet-18 with torchvision's tensor names, so that weights for it load here.

`stem: small` is for images of about 64 pixels: the first convolution is 3 x 3 and keeps the size, and no pooling follows.
`weights: imagenet` starts from the published weights, except the head and the first convolution of the small stem. Images are
normalized with ImageNet's mean and deviation; grey ones become three equal channels.
"""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from sr_dist.core.config import Positive, Settings, Whole
from sr_dist.core.contracts import Classifier
from sr_dist.models.imagenet import as_imagenet, load_published

FILE = "resnet18-f37072fd.pth"


class Config(Settings):
    outputs: Positive = 1000
    """Taken from the shards."""
    channels: Annotated[Literal[1, 3], Whole] = 3
    stem: Literal["imagenet", "small"] = "imagenet"
    weights: Literal["imagenet", "none"] = "none"


def build(config: Config) -> Classifier:
    network = ResNet18(config)
    if config.weights == "imagenet":
        load_published(network, FILE, "classifier")
    return network


def files(config: Config) -> list[str]:
    """The published files that training starts from."""
    return [FILE] if config.weights == "imagenet" else []


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
