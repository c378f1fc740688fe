"""A network of the user's own whose features are compared: a finished classifier, or a TorchScript file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sr_dist.core.files import sha256
from sr_dist.evaluation.distances.extractor import Extractor, torchscript
from sr_dist.models import trained


def open_own(place: str | None, device: torch.device, resize: str = "clean") -> Extractor | None:
    if not place:
        return None
    if not (trained.is_run(Path(place)) or place.endswith(".safetensors")):
        return torchscript(Path(place), resize, device)
    classifier = trained.open_classifier(place, "extractor").to(device)
    layer = type(classifier.last_layer).__name__
    about = {"network": f"a classifier of {classifier.labels}, features before its last layer ({layer})"}
    own = f"bilinear, to {classifier.size} x {classifier.size}, as it was trained" if classifier.size else None

    @torch.inference_mode()
    def features(pictures: Tensor) -> Tensor:
        return classifier.features(pictures / 255)

    return Extractor(classifier.name, sha256(classifier.file), None, features, device, about, own)
