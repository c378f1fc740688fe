"""What networks that begin with ImageNet's weights share: its normalisation, and loading all of a file but the head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sr_dist.core.errors import UserError, first_line
from sr_dist.models import pretrained

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def as_imagenet(images: Tensor) -> Tensor:
    """(B, 1 or 3, H, W) in [0, 1] -> three channels, normalised as ImageNet's were."""
    mean, std = (images.new_tensor(values)[:, None, None] for values in (MEAN, STD))
    return (images.expand(-1, 3, -1, -1) - mean) / std


def load_published(network: nn.Module, name: str, key: str) -> None:
    """Everything of the file that has its shape in the network; what differs (the head, a stem) stays as it is initialised."""
    path = pretrained.find(name, key)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        wanted = network.state_dict()
        fitting = {name: value for name, value in found.items() if name in wanted and wanted[name].shape == value.shape}
        assert len(fitting) > len(wanted) / 2, f"{len(fitting)} of {len(wanted)} tensors fit"
    except Exception as problem:
        raise UserError(f"{key}: '{path}' is no file of this network's weights: {first_line(problem)}") from None
    network.load_state_dict({**wanted, **fitting})
