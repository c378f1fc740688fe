"""The Real-ESRGAN discriminator: a U-Net with spectral norm and a logit for every pixel.

Three strided convolutions to 8 times the width, bilinear upsampling back, and skip connections that add the encoder's features.
Sizes that 8 does not divide are padded (the edge repeated), and the logits cropped. With width 64 it has 4,376,897 parameters.

Tensors, as in Real-ESRGAN: conv0..conv9; conv1 to conv8 carry weight_orig, weight_u, weight_v, the keys of
torch.nn.utils.spectral_norm. The newer parametrization has other names, under which published discriminators would not load.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import spectral_norm

from sr_dist.core.batch import DiscriminatorOutput
from sr_dist.core.config import Positive, Settings, Whole
from sr_dist.core.contracts import Discriminator
from sr_dist.core.launch_env import Launch
from sr_dist.models import limits


class Config(Settings):
    channels: Annotated[Literal[1, 3], Whole] = 3
    width: Positive = 64


def build(config: Config, scale: int) -> Discriminator:
    return UNetDiscriminator(config)


def refuses(config: Config, launch: Launch) -> str | None:
    return limits.spectral_norm(launch)


class UNetDiscriminator(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.width
        self.conv0 = nn.Conv2d(config.channels, width, 3, padding=1)
        self.conv1, self.conv2, self.conv3 = (downsampling(width * 2**i, width * 2 ** (i + 1)) for i in range(3))
        self.conv4, self.conv5, self.conv6 = (same_size(width * 2 ** (i + 1), width * 2**i) for i in (2, 1, 0))
        self.conv7, self.conv8 = same_size(width, width), same_size(width, width)
        self.conv9 = nn.Conv2d(width, 1, 3, padding=1)
        with torch.no_grad():  # a forward in training refines the norms, whose random start is far off
            for _ in range(15):
                self(torch.zeros(1, config.channels, 8, 8))

    def forward(self, images: Tensor) -> DiscriminatorOutput:
        height, width = images.shape[-2:]
        x = F.pad(images, (0, -width % 8, 0, -height % 8), mode="replicate")
        x = F.leaky_relu(self.conv0(x), 0.2)
        finer = []
        for conv in (self.conv1, self.conv2, self.conv3):
            finer.append(x)  # (B, width 2^i, H / 2^i, W / 2^i)
            x = F.leaky_relu(conv(x), 0.2)
        for conv in (self.conv4, self.conv5, self.conv6):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = F.leaky_relu(conv(x), 0.2) + finer.pop()
        x = F.leaky_relu(self.conv8(F.leaky_relu(self.conv7(x), 0.2)), 0.2)
        return DiscriminatorOutput(self.conv9(x).squeeze(1)[..., :height, :width], None)  # (B, H, W)


def downsampling(inside: int, width: int) -> nn.Module:
    return spectral_norm(nn.Conv2d(inside, width, 4, 2, padding=1, bias=False))


def same_size(inside: int, width: int) -> nn.Module:
    return spectral_norm(nn.Conv2d(inside, width, 3, padding=1, bias=False))
