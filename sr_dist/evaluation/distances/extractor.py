"""The network whose features the Fréchet and kernel distances compare, and how it gets images.

Resizing and the FID Inception are clean-fid's, in its modes `clean` and `legacy_pytorch`. Statistics and distances are ours
(`frechet.py`). Weights are located and verified like all published weights, because clean-fid looks in the temporary folder,
verifies nothing, and downloads without asking.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sr_dist.core.errors import UserError, first_line
from sr_dist.models import pretrained, trained
from sr_dist.models import torchscript as torchscript_files
from sr_dist.models.verified import digest

SIDE = 299
INCEPTION = {"clean": "inception-2015-12-05.pt", "legacy_pytorch": "pt_inception-2015-12-05-6726825d.pth"}
AT_ONCE = 16  # images of 299 pixels; fixed, because the last bits of features depend on it


@dataclass(frozen=True)
class Extractor:
    name: str  # `inception`, or what follows `fd_` in the report
    weights_sha256: str
    resize: str | None  # clean-fid's mode; None: the network takes any size
    network: Callable[[Tensor], Tensor]  # (B, 3, 299, 299), or any size, in [0, 255] -> (B, width)
    device: torch.device
    about: Mapping[str, str] = field(default_factory=dict)  # further facts for the report
    own_resize: str | None = None  # how the network itself resizes images and patches

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
        """(B, 3, H, W) in [0, 1] -> (B, width). Every image is resized to 299 x 299, unless the network takes any size."""
        with ThreadPoolExecutor(1) as thread:
            return self.features(self.resized(images, thread)())

    def resized(self, images: Tensor, threads: Executor) -> Callable[[], Tensor]:
        """(B, 3, H, W) in [0, 1] -> a function that returns (B, 3, 299, 299), or (B, 3, H, W), in [0, 255], when the threads have
        resized them."""
        levels = _to_uint8(images)
        if self.resize is None:
            return lambda: torch.from_numpy(levels).permute(0, 3, 1, 2).float()
        from cleanfid.resize import build_resizer  # spares a second at the start

        resizing = [threads.submit(build_resizer(self.resize), image) for image in levels]
        return lambda: torch.stack([torch.from_numpy(one.result()).permute(2, 0, 1) for one in resizing]).float()

    def patches(self, images: Tensor) -> np.ndarray:
        """(B, 3, H, W) in [0, 1] -> (B x patches, width): a grid of 299 x 299 in the middle of every image, not resized."""
        rows, columns = images.shape[-2] // SIDE, images.shape[-1] // SIDE
        if not rows * columns:
            return np.zeros((0, 0), np.float32)
        top, left = (images.shape[-2] - rows * SIDE) // 2, (images.shape[-1] - columns * SIDE) // 2
        inside = torch.from_numpy(_to_uint8(images))[:, top : top + rows * SIDE, left : left + columns * SIDE].float()
        grid = inside.unflatten(1, (rows, SIDE)).unflatten(3, (columns, SIDE))  # (B, rows, 299, columns, 299, 3)
        return self.features(grid.permute(0, 1, 3, 5, 2, 4).flatten(0, 2))

    def features(self, images: Tensor) -> np.ndarray:
        """(B, 3, 299, 299), or any size, in [0, 255] -> (B, width)."""
        return np.concatenate([self._rows(part) for part in images.split(AT_ONCE)])

    def _rows(self, images: Tensor) -> np.ndarray:
        rows = self.network(images.to(self.device))
        torchscript_files.check_rows(rows, images, f"extractor: '{self.name}'")
        if not rows.isfinite().all():
            raise UserError(f"extractor: '{self.name}' returns values that are not finite; its weights are damaged or diverged")
        return rows.float().cpu().numpy()


def _to_uint8(images: Tensor) -> np.ndarray:
    """(B, 3, H, W) in [0, 1] -> (B, H, W, 3) uint8, as a file stores them."""
    return (images.float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def inception(resize: str, device: torch.device) -> Extractor:
    """The FID Inception."""
    path = pretrained.find(INCEPTION[resize], "fid")
    network = _inception(path) if resize == "clean" else _pytorch_inception(path)
    return Extractor("inception", digest(path), resize, _inference(network, device, "fid", path), device)


def open_extractor(path: str | None, device: torch.device, resize: str = "clean") -> Extractor | None:
    """The user's own network: a trained classifier or a TorchScript file. None without a path."""
    if not path:
        return None
    if trained.is_run(Path(path)) or path.endswith(".safetensors"):
        return classifier_extractor(path, device)
    return torchscript(Path(path), resize, device)


def torchscript(path: Path, resize: str, device: torch.device) -> Extractor:
    """A TorchScript file: (B, 3, 299, 299) in [0, 255] -> (B, width). Runs it once, so that errors are reported at once.

    Its code runs. It is called in evaluation mode; nothing else is promised, as such a file may read and write any other.
    """
    network = torchscript_files.load(path, "extractor")
    about = {"network": "a TorchScript file"}
    extractor = Extractor(path.stem, digest(path), resize, _inference(network, device, "extractor", path), device, about)
    extractor.whole(torch.linspace(0, 1, 2 * 3 * SIDE * SIDE).view(2, 3, SIDE, SIDE))
    return extractor


def classifier_extractor(path: str, device: torch.device) -> Extractor:
    """A trained classifier: the features before its last layer, of images as it was trained on them."""
    classifier = trained.open_classifier(path, "extractor").to(device)
    layer = type(classifier.last_layer).__name__
    about = {"network": f"a classifier of {classifier.labels}, features before its last layer ({layer})"}
    resize = f"bilinear, to {classifier.size} x {classifier.size}, as it was trained" if classifier.size else None

    @torch.inference_mode()
    def features(images: Tensor) -> Tensor:
        return classifier.features(images / 255)

    return Extractor(classifier.name, classifier.sha256, None, features, device, about, resize)


def _inference(network: torch.nn.Module, device: torch.device, key: str, path: Path) -> Callable[[Tensor], Tensor]:
    """The network without gradients. An error in it is reported with the name of its file."""
    network = network.to(device).eval()

    def features(images: Tensor) -> Tensor:
        try:
            with torch.inference_mode():
                return network(images)
        except RuntimeError as problem:
            raise UserError(f"{key}: '{path}' fails on images {tuple(images.shape)}: {first_line(problem)}") from None

    return features


def _inception(path: Path) -> torch.nn.Module:
    from cleanfid.inception_torchscript import InceptionV3W  # spares a second at the start

    with torchscript_files.without_deprecation():
        return InceptionV3W(str(path.parent), download=False)


def _pytorch_inception(path: Path) -> torch.nn.Module:
    from cleanfid import inception_pytorch  # spares a second at the start

    original = inception_pytorch.load_state_dict_from_url  # clean-fid's only way to its weights
    inception_pytorch.load_state_dict_from_url = lambda *_, **__: torch.load(path, map_location="cpu", weights_only=True)
    try:
        network = inception_pytorch.InceptionV3(output_blocks=[3], resize_input=False)
    finally:
        inception_pytorch.load_state_dict_from_url = original
    return _Pooled(network)


class _Pooled(torch.nn.Module):
    """[0, 255] -> (B, 2048), as clean-fid calls it."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images / 255)[0].flatten(1)
