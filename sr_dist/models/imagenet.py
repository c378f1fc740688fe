"""What networks with ImageNet weights share: the normalization, and loading a published file without its head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sr_dist.core.constants import numbers
from sr_dist.core.errors import UserError, first_line
from sr_dist.models import pretrained

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def as_imagenet(images: Tensor) -> Tensor:
    """(B, 1 or 3, H, W) in [0, 1] -> three channels, normalized with ImageNet's mean and deviation."""
    mean, std = (numbers(values, images.dtype, images.device)[:, None, None] for values in (MEAN, STD))
    return (images.expand(-1, 3, -1, -1) - mean) / std


def load_published(network: nn.Module, name: str, key: str) -> None:
    """Loads every tensor that has the network's shape; others (the head, a stem) stay as initialized."""
    path = pretrained.find(name, key)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        own = network.state_dict()
        fitting = {name: value for name, value in tensors.items() if name in own and own[name].shape == value.shape}
        assert len(fitting) > len(own) / 2, f"{len(fitting)} of {len(own)} tensors fit"
    except Exception as problem:
        raise UserError(f"{key}: '{path}' is no file of this network's weights: {first_line(problem)}") from None
    network.load_state_dict({**own, **fitting})
