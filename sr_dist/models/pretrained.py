"""Published weights: where they are searched, how they are verified, and what to do when they are missing.

Search order: `$SR_DIST_WEIGHTS`, then the torch hub cache. A download happens only when the recipe allows it, by the first rank
of a node, to a temporary name. The sha256 of a file whose name ends in -<8 hex digits> must begin with them; SHA256 has
the others.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import urllib.request
from pathlib import Path

from sr_dist.core.errors import UserError
from sr_dist.core.files import locked
from sr_dist.models.verified import digest

PYTORCH = "https://download.pytorch.org/models/"
ADDRESSES = {
    name: PYTORCH + name
    for name in ("vgg19-dcbb9e9d.pth", "vgg16-397923af.pth", "alexnet-owt-7be5be79.pth", "resnet18-f37072fd.pth")
} | {
    "inception-2015-12-05.pt": "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
    "pt_inception-2015-12-05-6726825d.pth": "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth",
}
SHA256 = {"inception-2015-12-05.pt": "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"}


class MissingWeights(UserError):
    """A published file is missing on this machine."""


def folders() -> list[Path]:
    """Where weights are searched, in order; a download goes to the first."""
    named = os.environ.get("SR_DIST_WEIGHTS")
    return [*([Path(named)] if named else []), hub_folder() / "checkpoints"]


def hub_folder() -> Path:
    """`torch.hub.get_dir()`, from the same variables where torch, which takes seconds, is not loaded."""
    if torch := sys.modules.get("torch"):
        return Path(torch.hub.get_dir())
    home = os.environ.get("TORCH_HOME", os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch"))
    return Path(home).expanduser() / "hub"


def find(name: str, key: str, download: bool = False) -> Path:
    """The path of a published file, verified. `key` names the recipe key in errors."""
    for folder in folders():
        if (folder / name).is_file():
            return verified(folder / name, key)
    target = folders()[0] / name
    if download and name in ADDRESSES:
        return _downloaded(ADDRESSES[name], target, key)
    raise MissingWeights(
        f"{key}: the weights file '{name}' is missing; put it at '{target}' (or in the folder that SR_DIST_WEIGHTS names), "
        f"or set allow_download=true"
    )


def verified(path: Path, key: str, name: str | None = None) -> Path:
    name = name or path.name
    in_name = re.search(r"-([0-9a-f]{8,})\.[a-z]+$", name)
    stated = SHA256.get(name) or (in_name.group(1) if in_name else "")
    if stated and not (actual := digest(path)).startswith(stated):
        raise UserError(f"{key}: '{path}' is damaged or another file: its sha256 begins {actual[:8]}, not {stated[:8]}")
    return path


def _downloaded(address: str, target: Path, key: str) -> Path:
    temporary = target.with_name(f".{target.name}.part")
    with locked(temporary):  # the ranks of a node arrive together: one downloads, the others wait
        if target.is_file():
            return verified(target, key)
        try:
            with urllib.request.urlopen(address, timeout=60) as answer, open(temporary, "wb") as file:
                shutil.copyfileobj(answer, file)
            verified(temporary, key, target.name)
            os.replace(temporary, target)
        except OSError as problem:
            temporary.unlink(missing_ok=True)
            raise MissingWeights(
                f"{key}: '{target.name}' could not be downloaded ({problem}); put it at '{target}' by hand"
            ) from None
    return target
