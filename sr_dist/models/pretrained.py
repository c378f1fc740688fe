"""Published weights: where they are searched, how they are verified, and what to do when they are missing.

Search order: `$SR_DIST_WEIGHTS`, then the torch hub cache. A download happens only when the recipe allows it, by the first rank
of a node, or by `sr_dist.fetch`. The sha256 of a file must be that of the catalogue, or begin with the digits that its name ends
in, or be that of the first fetch, which is recorded beside it.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from sr_dist.core import catalogue
from sr_dist.core.catalogue import PublishedFile
from sr_dist.core.errors import UserError
from sr_dist.core.fetch_file import FetchError, Wanted, WrongFile, fetch, recorded
from sr_dist.models.verified import digest


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


def existing(name: str) -> Path | None:
    """The path of a file of this name in the folders."""
    return next((folder / name for folder in folders() if (folder / name).is_file()), None)


def find(name: str, key: str, download: bool = False) -> Path:
    """The path of a published file, verified. `key` names the recipe key in errors."""
    if path := existing(name):
        return verified(path, key)
    target = folders()[0] / name
    file = catalogue.weights_file(name)
    if download and file:
        return _downloaded(file, target, key)
    command = f"{advice} fetches it, or " if (advice := catalogue.advice(name)) else ""
    without = f"; {key}=none trains without it" if key.startswith("objective.content.") else ""
    raise MissingWeights(
        f"{key}: the weights file '{name}' is missing; {command}put it at '{target}' (or in the folder that SR_DIST_WEIGHTS "
        f"names), or set allow_download=true{without}"
    )


def verified(path: Path, key: str) -> Path:
    stated = stated_sha256(path)
    if stated and not (actual := digest(path)).startswith(stated):
        command = f"{advice} fetches it" if (advice := catalogue.advice(path.name)) else "fetch it"
        raise UserError(
            f"{key}: '{path}' is damaged or another file: its sha256 begins {actual[:8]}, not {stated[:8]}; move it away, and "
            f"{command} again; a file of your own needs another name"
        )
    return path


def stated_sha256(path: Path) -> str:
    """The sha256 that a file must have, or its first digits; empty where nothing is known."""
    file = catalogue.weights_file(path.name)
    in_name = re.search(r"-([0-9a-f]{8,})\.[a-z]+$", path.name)
    return (file.sha256 if file else "") or (in_name.group(1) if in_name else "") or recorded(path).get("sha256", "")


def _downloaded(file: PublishedFile, target: Path, key: str) -> Path:
    try:
        fetch(Wanted(file.address, file.bytes, file.sha256, file.md5), target)
    except WrongFile as problem:
        raise UserError(f"{key}: {problem}") from None
    except (FetchError, OSError) as problem:
        raise MissingWeights(f"{key}: {problem}; or put it at '{target}' by hand") from None
    return verified(target, key)
