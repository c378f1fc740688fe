"""A finished classifier on images of any size and colour: what losses and reports ask for its opinion."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from sr_dist.labels import Labels

LUMA = (0.299, 0.587, 0.114)  # BT.601


class FrozenClassifier(nn.Module):
    """In evaluation mode for good, and no gradient stays in it; one passes through it to the images."""

    def __init__(self, network: nn.Module, name: str, file: Path, labels: Labels, size: int | None, channels: int) -> None:
        super().__init__()
        self.network, self.name, self.file, self.labels, self.size, self.channels = network, name, file, labels, size, channels
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> FrozenClassifier:
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1 or 3, H, W) in [0, 1] -> logits (B, labels). Images come to the size and the channels that it was trained on."""
        if images.shape[1] == 3 and self.channels == 1:
            images = (images * images.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
        elif images.shape[1] == 1 and self.channels == 3:
            images = images.expand(-1, 3, -1, -1)
        if self.size and images.shape[-2:] != (self.size, self.size):
            images = F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
        return self.network(images).float()
