"""The network whose features a Fréchet distance compares, and how pictures come to it.

Of clean-fid its resizing and its Inception are used, in its modes `clean` and `legacy_pytorch`; statistics and distances are
ours (`frechet.py`). Weights are found and checked as all published ones are: clean-fid itself looks in the temporary
folder, checks nothing, and fetches what is missing without being asked.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sr_dist.core.errors import UserError, first_line
from sr_dist.core.files import sha256
from sr_dist.models import pretrained

SIDE = 299
INCEPTION = {"clean": "inception-2015-12-05.pt", "legacy_pytorch": "pt_inception-2015-12-05-6726825d.pth"}
AT_ONCE = 16  # pictures of 299 pixels; fixed, for the last bits of features depend on it


@dataclass(frozen=True)
class Extractor:
    name: str  # `inception`, or what follows `fd_` in the report
    weights_sha256: str
    resize: str | None  # clean-fid's; None: the network takes any size
    network: Callable[[Tensor], Tensor]  # (B, 3, 299, 299), or of any size, in [0, 255] -> (B, width)
    device: torch.device
    about: Mapping[str, str] = field(default_factory=dict)  # what else is to be said of it
    own_resize: str | None = None  # how the network itself brings pictures, patches too, to its size

    def describe(self) -> dict[str, Any]:
        patches = f"resized ({self.own_resize})" if self.own_resize else "without resizing"
        return {
            "extractor": self.name,
            "weights_sha256": self.weights_sha256,
            "resize": f"{self.resize}, to {SIDE} x {SIDE}" if self.resize else self.own_resize or "none",
            **self.about,
            "patches": f"{SIDE} x {SIDE} {patches}, a grid in the middle of every image",
        }

    def whole(self, images: Tensor) -> np.ndarray:
        """(B, 3, H, W) in [0, 1] -> (B, width): every image resized to 299 x 299, or as it is."""
        if self.resize is None:
            return self._features(torch.from_numpy(_levels(images)).permute(0, 3, 1, 2).float())
        from cleanfid.resize import build_resizer

        resized = build_resizer(self.resize)
        small = [torch.from_numpy(resized(picture)).permute(2, 0, 1) for picture in _levels(images)]
        return self._features(torch.stack(small).float())

    def patches(self, images: Tensor) -> np.ndarray:
        """(B, 3, H, W) in [0, 1] -> (B x patches, width): a grid of 299 x 299 in the middle of every image, as it is."""
        rows, columns = images.shape[-2] // SIDE, images.shape[-1] // SIDE
        if not rows * columns:
            return np.zeros((0, 0), np.float32)
        top, left = (images.shape[-2] - rows * SIDE) // 2, (images.shape[-1] - columns * SIDE) // 2
        inside = torch.from_numpy(_levels(images))[:, top : top + rows * SIDE, left : left + columns * SIDE].float()
        grid = inside.unflatten(1, (rows, SIDE)).unflatten(3, (columns, SIDE))  # (B, rows, 299, columns, 299, 3)
        return self._features(grid.permute(0, 1, 3, 5, 2, 4).flatten(0, 2))

    def _features(self, pictures: Tensor) -> np.ndarray:
        return np.concatenate([self._rows(part) for part in pictures.split(AT_ONCE)])

    def _rows(self, pictures: Tensor) -> np.ndarray:
        found = self.network(pictures.to(self.device))
        what = tuple(found.shape) if isinstance(found, Tensor) else f"a {type(found).__name__}"
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(pictures):
            raise UserError(f"extractor: '{self.name}' makes {what} of {len(pictures)} pictures, not a row for each")
        if not found.isfinite().all():
            raise UserError(f"extractor: '{self.name}' makes what is no number of pictures; its weights are damaged or diverged")
        return found.float().cpu().numpy()


def _levels(images: Tensor) -> np.ndarray:
    """(B, 3, H, W) in [0, 1] -> (B, H, W, 3) uint8, as a file would hold them."""
    return (images.float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def inception(resize: str, device: torch.device) -> Extractor:
    """The FID Inception."""
    path = pretrained.find(INCEPTION[resize], "fid")
    network = _inception(path) if resize == "clean" else _pytorch_inception(path)
    return Extractor("inception", sha256(path), resize, _quiet(network, device, "fid", path), device)


def torchscript(path: Path, resize: str, device: torch.device) -> Extractor:
    """A file of the user's own: pictures of 299 pixels in [0, 255] -> a row for each, which is tried at once."""
    try:
        with _as_it_is():
            network = torch.jit.load(str(path), map_location="cpu")
    except Exception as problem:
        raise UserError(f"extractor: '{path}' is no TorchScript file: {first_line(problem)}") from None
    about = {"network": "a TorchScript file"}
    found = Extractor(path.stem, sha256(path), resize, _quiet(network, device, "extractor", path), device, about)
    found.whole(torch.linspace(0, 1, 2 * 3 * SIDE * SIDE).view(2, 3, SIDE, SIDE))
    return found


@contextmanager
def _as_it_is() -> Iterator[None]:
    """Without torch's advice to write TorchScript files anew."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.load` is deprecated", FutureWarning)
        yield


def _quiet(network: torch.nn.Module, device: torch.device, key: str, path: Path) -> Callable[[Tensor], Tensor]:
    """The network without gradients; what it cannot do is the file's mistake, and is said with its name."""
    network = network.to(device).eval()

    def features(pictures: Tensor) -> Tensor:
        try:
            with torch.inference_mode():
                return network(pictures)
        except RuntimeError as problem:
            raise UserError(f"{key}: '{path}' fails on pictures {tuple(pictures.shape)}: {first_line(problem)}") from None

    return features


def _inception(path: Path) -> torch.nn.Module:
    from cleanfid.inception_torchscript import InceptionV3W

    with _as_it_is():
        return InceptionV3W(str(path.parent), download=False)


def _pytorch_inception(path: Path) -> torch.nn.Module:
    from cleanfid import inception_pytorch

    theirs = inception_pytorch.load_state_dict_from_url
    inception_pytorch.load_state_dict_from_url = lambda *_, **__: torch.load(path, map_location="cpu", weights_only=True)
    try:  # it knows no other way to be given a file
        network = inception_pytorch.InceptionV3(output_blocks=[3], resize_input=False)
    finally:
        inception_pytorch.load_state_dict_from_url = theirs
    return _Pooled(network)


class _Pooled(torch.nn.Module):
    """[0, 255] -> (B, 2048), as clean-fid calls it."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pictures: Tensor) -> Tensor:
        return self.network(pictures / 255)[0].flatten(1)
