"""The digits study's classifier (`form: author`): three convolutions (32, 64, 128), two poolings, dense 128-64-10.

    conv32, conv64, pool, conv128, pool; then dense 128, dense 64, a logit per class

Every convolution is 3 x 3. The first dense layer fits one size of image, `size`, which is data.crop. There are two forms:

    author        convolution, batch normalization, ReLU; dropout before every dense layer, batch normalization after it, ReLU
    relu_first    ours: convolution, ReLU, batch normalization; dense layer, ReLU, dropout

The study normalizes pixels by MNIST's mean and deviation; here they are in [-1, 1].
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sr_dist.core.config import Positive, Settings, Whole
from sr_dist.core.contracts import Classifier
from sr_dist.core.errors import UserError
from sr_dist.recipe.sections import Recipe


class Config(Settings):
    outputs: Positive = 10
    """Taken from the shards."""
    channels: Annotated[Literal[1, 3], Whole] = 3
    widths: tuple[Positive, Positive, Positive] = (32, 64, 128)
    features: tuple[Positive, Positive] = (128, 64)
    size: Annotated[int, Field(ge=4)] = 28
    """Of the images, in pixels."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    form: Literal["author", "relu_first"] = "relu_first"
    """author is the order of layers in the study's public code."""
    norm: Literal["batch", "none"] = "batch"
    """none makes an image's result independent of the other images of its batch."""


def build(config: Config) -> Classifier:
    return DigitCNN(config)


def check(config: Config, recipe: Recipe) -> None:
    """The dense layer must fit the images that training crops."""
    if recipe.data.crop != config.size:
        raise UserError(
            f"classifier.size: the dense layer fits images of {config.size}, but data.crop is {recipe.data.crop}; make them equal"
        )


class DigitCNN(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        first, second, third = config.widths
        self.author = config.form == "author"
        self.conv1, self.conv2 = Layer(config.channels, first, config), Layer(first, second, config)
        self.conv3 = Layer(second, third, config)
        self.dense1 = nn.Linear(third * (config.size // 4) ** 2, config.features[0])
        self.dense2 = nn.Linear(*config.features)
        self.logits = nn.Linear(config.features[1], config.outputs)
        self.drop = nn.Dropout(config.dropout)
        if self.author:
            normed = config.norm == "batch"
            self.norm1, self.norm2 = (nn.BatchNorm1d(width) if normed else nn.Identity() for width in config.features)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, size, size) in [0, 1] -> (B, outputs)."""
        x = F.max_pool2d(self.conv2(self.conv1(images * 2 - 1)), 2)
        x = F.max_pool2d(self.conv3(x), 2)  # (B, 128, size / 4, size / 4)
        if self.author:
            x = F.relu(self.norm1(self.dense1(self.drop(x.flatten(1)))))
            x = F.relu(self.norm2(self.dense2(self.drop(x))))
            return self.logits(self.drop(x))
        x = self.drop(F.relu(self.dense1(x.flatten(1))))
        return self.logits(self.drop(F.relu(self.dense2(x))))


class Layer(nn.Module):
    def __init__(self, inside: int, width: int, config: Config) -> None:
        super().__init__()
        self.author = config.form == "author"
        self.conv = nn.Conv2d(inside, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width) if config.norm == "batch" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x))) if self.author else self.norm(F.relu(self.conv(x)))
