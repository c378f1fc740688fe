"""The SRGAN discriminator: eight convolutions that halve the size four times, dense 1024, one logit.

The dense layer fits one size of image, `crop`, which is data.crop. `pooling: true` (not in the paper) uses global average pooling
instead: any input size, and 36 times fewer weights in that layer at crop 96.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from sr_dist.core.batch import DiscriminatorOutput
from sr_dist.core.config import Positive, Settings, Whole
from sr_dist.core.contracts import Discriminator
from sr_dist.core.errors import UserError
from sr_dist.models.discriminators.patch import stages
from sr_dist.recipe.sections import Recipe


class Config(Settings):
    channels: Annotated[Literal[1, 3], Whole] = 3
    width: Positive = 64
    """Of the first convolution; the last one has eight times as many channels."""
    features: Positive = 1024
    norm: Literal["batch", "none"] = "batch"
    """none makes an image's result independent of the other images of its batch."""
    crop: Positive = 96
    """The image size of the dense layer."""
    pooling: bool = False
    """Global average pooling, for any image size."""


def build(config: Config, scale: int) -> Discriminator:
    return SRGANDiscriminator(config)


def check(config: Config, recipe: Recipe) -> None:
    """The dense layer must fit the images that training crops."""
    if not config.pooling and recipe.data.crop != config.crop:
        raise UserError(
            f"discriminator.crop: the dense layer fits images of {config.crop}, but data.crop is {recipe.data.crop}; "
            f"set discriminator.crop={recipe.data.crop} or discriminator.pooling=true"
        )


class SRGANDiscriminator(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.crop = None if config.pooling else config.crop
        widths = [config.width * 2**i for i in range(4)]
        self.stages = stages(config.channels, widths, config.norm == "batch")
        side = 1 if config.pooling else -(-config.crop // 16)
        self.dense = nn.Linear(widths[-1] * side**2, config.features)
        self.logit = nn.Linear(config.features, 1)

    def forward(self, images: Tensor) -> DiscriminatorOutput:
        if self.crop and images.shape[-2:] != (self.crop, self.crop):
            height, width = images.shape[-2:]
            raise UserError(f"discriminator.crop: the dense layer fits {self.crop} x {self.crop} pixels, not {height} x {width}")
        x = self.stages(images * 2 - 1)  # (B, 512, H / 16, W / 16)
        x = x.flatten(1) if self.crop else x.mean((2, 3))
        return DiscriminatorOutput(self.logit(F.leaky_relu(self.dense(x), 0.2)).squeeze(1), None)
