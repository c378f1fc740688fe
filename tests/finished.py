"""Trained classifiers for tests: tiny, with random weights, in weights files."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from sr_dist.core import plugins
from sr_dist.core.plugins import PACKAGES
from sr_dist.models import metadata
from sr_dist.recipe.labels import Labels

TINY = {"widths": (4, 6, 8), "features": (8, 8), "norm": "none", "dropout": 0.0}


def finished(path: Path, labels: Labels, size: int = 8, seed: int = 0, name: str = "digit_cnn", **options) -> str:
    """Writes a weights file and returns its path as a recipe names it."""
    torch.manual_seed(seed)
    own = {**(TINY | {"size": size} if name == "digit_cnn" else {}), "outputs": len(labels.names), **options}
    module, settings = plugins.resolve(PACKAGES["classifier"], name, own, "classifier")
    network = module.build(settings)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3)  # otherwise logits hardly differ
    header = metadata.classifier_metadata({"name": name, **settings.model_dump(mode="json")}, labels, size)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), path, header)
    return str(path)
