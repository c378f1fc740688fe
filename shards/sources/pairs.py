"""HR images with LR images of their own, matched by name whatever their order; endings such as x4, _LR, _HR do not count.

INPUT holds the HR images and --lr=FOLDER the LR ones; or INPUT holds folders called HR and LR; or both kinds, told apart by _LR.
--scale=4 is how many times smaller the LR images are: exactly, unless --resize=256 makes HR 256 and LR 64 pixels.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import Field

from shards.items import Item, Listing, fit, image_names
from sr_dist.core.config import Absent, Settings
from sr_dist.core.errors import UserError

MARK = re.compile(r"(?:[._ -](?:hr|lr|gt|hq|lq)\d*|[._ -]?x\d+)+$", re.IGNORECASE)
LR_MARK = re.compile(r"[._ -](?:lr|lq)\d*(?:[._ -]?x\d+)?$", re.IGNORECASE)


class Config(Settings):
    lr: Annotated[Path | None, Absent] = None
    scale: Annotated[int, Field(gt=1)] = 4


def listing(root: str, config: Config) -> Listing:
    rejects: list[dict[str, str]] = []
    hr, lr = (_by_name(files, kind, rejects) for kind, files in zip(("HR", "LR"), _files(Path(root), config.lr), strict=True))
    items = [Item(fit(name), hr[name], lr=lr[name]) for name in sorted(hr.keys() & lr.keys())]
    if not items and hr and lr:
        raise UserError(f"INPUT: no HR image has the name of an LR image: '{min(hr.values())}', '{min(lr.values())}', ...")
    for ours, theirs, kind in ((hr, lr, "LR"), (lr, hr, "HR")):
        for name in sorted(ours.keys() - theirs.keys()):
            rejects.append({"key": fit(name), "path": ours[name], "reason": f"no {kind} image has this name"})
    return Listing(items, scale=config.scale, rejects=rejects)


def _files(root: Path, lr: Path | None) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(name without suffix, path) of all HR and of all LR images."""
    if lr:
        if not lr.is_dir():
            raise UserError(f"lr: no folder '{lr}'")
        if lr.resolve() == root.resolve():
            raise UserError(f"lr: '{lr}' is INPUT; leave --lr out where names in _LR say which images are LR")
        return _named(root), _named(lr)
    folders = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()} if root.is_dir() else {}
    if "hr" in folders and "lr" in folders:
        return _named(folders["hr"]), _named(folders["lr"])
    every = _named(root)
    small = [(name, path) for name, path in every if LR_MARK.search(name)]
    if every and not small:
        raise UserError(f"lr: '{root}' has neither folders HR and LR nor images called ..._LR; give --lr=FOLDER")
    return [file for file in every if file not in small], small


def _named(folder: Path) -> list[tuple[str, str]]:
    return [(name[: name.rindex(".")], f"{folder}/{name}") for name in image_names(folder)]


def _by_name(files: list[tuple[str, str]], kind: str, rejects: list[dict[str, str]]) -> dict[str, str]:
    """Paths by name without marks. What then has the name of another is rejected, for one of them would get a wrong partner."""
    found: dict[str, list[str]] = {}
    for name, path in files:
        found.setdefault(MARK.sub("", name) or name, []).append(path)
    for name, paths in found.items():
        if len(paths) > 1:
            reason = f"{len(paths)} {kind} images are called '{name}'"
            rejects.extend({"key": fit(name), "path": path, "reason": reason} for path in paths)
    return {name: paths[0] for name, paths in found.items() if len(paths) == 1}
