"""Published weights: where they are looked for, how they are told from broken ones, and what to do when they are missing.

Order: `$SR_DIST_WEIGHTS`, then the torch hub cache. Downloaded only when the recipe allows it, by the first rank of a
node, to a temporary name. A file whose name ends in -<8 hex digits> must begin its sha256 with them; SHA256 has the others'.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import urllib.request
from pathlib import Path

from sr_dist.core.errors import UserError
from sr_dist.core.files import sha256

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
    """A published file is not on this machine."""


def folders() -> list[Path]:
    """Where weights are looked for, in order; the first is where a download goes."""
    import torch.hub

    named = os.environ.get("SR_DIST_WEIGHTS")
    return [*([Path(named)] if named else []), Path(torch.hub.get_dir()) / "checkpoints"]


def find(name: str, key: str, download: bool = False) -> Path:
    """The path of a published file, checked. `key` is the recipe's key that asks for it."""
    for folder in folders():
        if (folder / name).is_file():
            return verified(folder / name, key)
    place = folders()[0] / name
    if download and name in ADDRESSES:
        return _downloaded(ADDRESSES[name], place, key)
    raise MissingWeights(
        f"{key}: the weights file '{name}' is not here; put it at '{place}' (or in the folder that SR_DIST_WEIGHTS names), "
        f"or set allow_download=true"
    )


def verified(path: Path, key: str, name: str | None = None) -> Path:
    name = name or path.name
    in_name = re.search(r"-([0-9a-f]{8,})\.[a-z]+$", name)
    stated = SHA256.get(name) or (in_name.group(1) if in_name else "")
    if stated and not (found := sha256(path)).startswith(stated):
        raise UserError(f"{key}: '{path}' is damaged or another file: its sha256 begins {found[:8]}, not {stated[:8]}")
    return path


def _downloaded(address: str, place: Path, key: str) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    aside = place.with_name(f".{place.name}.part")
    with open(aside, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the ranks of a node arrive together: one fetches, the others find
        if place.is_file():
            return verified(place, key)
        file.truncate(0)
        try:
            with urllib.request.urlopen(address, timeout=60) as answer:
                shutil.copyfileobj(answer, file)
            file.flush()
            verified(aside, key, place.name)
            os.replace(aside, place)
        except OSError as problem:
            aside.unlink(missing_ok=True)
            raise MissingWeights(
                f"{key}: '{place.name}' could not be downloaded ({problem}); put it at '{place}' by hand"
            ) from None
    return place
