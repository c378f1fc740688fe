"""A trained classifier for images of any size and colour, as losses and reports use it."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from sr_dist.core.colour import luma
from sr_dist.core.errors import UserError
from sr_dist.recipe.labels import Labels


class FrozenClassifier(nn.Module):
    """Always in evaluation mode, with frozen parameters. Gradients pass through it to the images."""

    def __init__(
        self, network: nn.Module, name: str, file: Path, labels: Labels, size: int | None, channels: int, sha256: str = ""
    ) -> None:  # fmt: skip
        """`sha256` is that of the file when it was opened."""
        super().__init__()
        self.sha256 = sha256
        self.network, self.name, self.file, self.labels, self.size, self.channels = network, name, file, labels, size, channels
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> FrozenClassifier:
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1 or 3, H, W) in [0, 1] -> logits (B, labels). Images are converted to its training size and channels."""
        return self.network(self._as_trained(images)).float()

    def features(self, images: Tensor) -> Tensor:
        """The same images -> (B, width): the input of the last layer; the mean over positions where that is a feature map."""
        inputs_seen: list[Tensor] = []
        hook = self.last_layer.register_forward_pre_hook(lambda _, inputs: inputs_seen.append(inputs[0]))
        try:
            self(images)
        finally:
            hook.remove()
        (features,) = inputs_seen
        return (features.flatten(2).mean(2) if features.ndim == 4 else features).float()

    @property
    def last_layer(self) -> nn.Module:
        """The layer with an output per label."""
        layers = [module for module in self.network.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        if not layers or len(layers[-1].weight) != len(self.labels.names):
            raise UserError(f"extractor: '{self.file}' does not end in a dense or convolutional layer for {self.labels}")
        return layers[-1]

    def _as_trained(self, images: Tensor) -> Tensor:
        if images.shape[1] == 3 and self.channels == 1:
            images = luma(images)
        elif images.shape[1] == 1 and self.channels == 3:
            images = images.expand(-1, 3, -1, -1)
        if self.size and images.shape[-2:] != (self.size, self.size):
            images = F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
        return images
