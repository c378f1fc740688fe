"""HR images with their own LR images, matched by name. INPUT has the HR images and --lr=FOLDER the LR images; or INPUT has
folders called HR and LR; or it has both kinds, told apart by _LR. Endings such as x4, _LR and _HR are not part of the name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import Field

from shards.items import Item, Listing, clean_key, image_names
from sr_dist.core.config import Absent, Settings
from sr_dist.core.errors import UserError

MARK = re.compile(r"(?:[._ -](?:hr|lr|gt|hq|lq)\d*|[._ -]?x\d+)+$", re.IGNORECASE)
LR_MARK = re.compile(r"[._ -](?:lr|lq)\d*(?:[._ -]?x\d+)?$", re.IGNORECASE)


class Config(Settings):
    lr: Annotated[Path | None, Absent] = None
    """The folder of the LR images."""
    scale: Annotated[int, Field(gt=1)] = 4
    """How many times smaller the LR images are: exactly, unless --resize=256 makes the short side of HR 256 and of LR 64."""


def listing(root: str, config: Config) -> Listing:
    rejects: list[dict[str, str]] = []
    hr, lr = (_by_name(files, kind, rejects) for kind, files in zip(("HR", "LR"), _files(Path(root), config.lr), strict=True))
    items = [Item(clean_key(name), hr[name], lr=lr[name]) for name in sorted(hr.keys() & lr.keys())]
    if not items and hr and lr:
        raise UserError(f"INPUT: no HR image has the name of an LR image: '{min(hr.values())}', '{min(lr.values())}', ...")
    for paths, others, kind in ((hr, lr, "LR"), (lr, hr, "HR")):
        for name in sorted(paths.keys() - others.keys()):
            rejects.append({"key": clean_key(name), "path": paths[name], "reason": f"no {kind} image has this name"})
    return Listing(items, scale=config.scale, rejects=rejects)


def _files(root: Path, lr: Path | None) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(name without suffix, path) of all HR and of all LR images."""
    if lr:
        if not lr.is_dir():
            raise UserError(f"lr: no folder '{lr}'")
        if lr.resolve() == root.resolve():
            raise UserError(f"lr: '{lr}' is INPUT; leave --lr out if _LR in the names tells which images are LR")
        return _named(root), _named(lr)
    folders = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()} if root.is_dir() else {}
    if "hr" in folders and "lr" in folders:
        return _named(folders["hr"]), _named(folders["lr"])
    files = _named(root)
    lr_files = [(name, path) for name, path in files if LR_MARK.search(name)]
    if files and not lr_files:
        raise UserError(f"lr: '{root}' has neither folders HR and LR nor images called ..._LR; give --lr=FOLDER")
    return [file for file in files if file not in lr_files], lr_files


def _named(folder: Path) -> list[tuple[str, str]]:
    return [(name[: name.rindex(".")], f"{folder}/{name}") for name in image_names(folder)]


def _by_name(files: list[tuple[str, str]], kind: str, rejects: list[dict[str, str]]) -> dict[str, str]:
    """Paths by name without marks. Images that then share a name are rejected, since their partner is not known."""
    by_name: dict[str, list[str]] = {}
    for name, path in files:
        by_name.setdefault(MARK.sub("", name) or name, []).append(path)
    for name, paths in by_name.items():
        if len(paths) > 1:
            reason = f"{len(paths)} {kind} images are called '{name}'"
            rejects.extend({"key": clean_key(name), "path": path, "reason": reason} for path in paths)
    return {name: paths[0] for name, paths in by_name.items() if len(paths) == 1}
