"""HR images with their own LR images, matched by name. INPUT has the HR images and --lr=FOLDER the LR images; or INPUT has
folders called HR and LR; or it has both kinds, told apart by _LR. Endings such as x4, _LR and _HR are not part of the name.
Or --list=FILE names the images.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from shards.items import Files, Item, Listing, clean_key, image_names
from shards.meta_info import Entry, read_entries, reject
from sr_dist.core.config import Absent, Settings
from sr_dist.core.errors import UserError

MARK = re.compile(r"(?:[._ -](?:hr|lr|gt|hq|lq)\d*|[._ -]?x\d+)+$", re.IGNORECASE)
LR_MARK = re.compile(r"[._ -](?:lr|lq)\d*(?:[._ -]?x\d+)?$", re.IGNORECASE)

Named = list[tuple[str, str]]  # name without suffix, path
Rejects = list[dict[str, str]]


class Config(Settings):
    lr: Annotated[Path | None, Absent] = None
    """The folder of the LR images."""
    list: Annotated[Path | None, Absent] = None
    """A text file as BasicSR's meta_info: a pair a line, `HR name, LR name`, below INPUT and --lr; or only names of HR images."""
    scale: Annotated[int, Field(gt=1)] = 4
    """How many times smaller the LR images are: exactly, unless --resize=256 makes the short side of HR 256 and of LR 64."""


def listing(root: str, config: Config) -> Listing:
    entries = read_entries(config.list, "list") if config.list else []
    if entries and entries[0].lr is not None:
        return _listed_pairs(root, config, entries)
    rejects: Rejects = []
    hr_files, lr_files = _files(Path(root), config.lr)
    if entries:
        hr_files = _listed(root, hr_files, entries, rejects)
    hr, lr = (_by_name(files, kind, rejects) for kind, files in (("HR", hr_files), ("LR", lr_files)))
    items = [Item(clean_key(name), hr[name], lr=lr[name]) for name in sorted(hr.keys() & lr.keys())]
    if not items and hr and lr:
        raise UserError(f"INPUT: no HR image has the name of an LR image: '{min(hr.values())}', '{min(lr.values())}', ...")
    for paths, others, kind in ((hr, lr, "LR"), (lr, hr, "HR")):
        for name in sorted(paths.keys() - others.keys()):
            if kind == "LR" or not entries:  # LR of images that the list leaves out are not missed
                rejects.append({"key": clean_key(name), "path": paths[name], "reason": f"no {kind} image has this name"})
    return Listing(items, scale=config.scale, rejects=rejects)


def _listed_pairs(root: str, config: Config, entries: Sequence[Entry]) -> Listing:
    """The pairs of a list whose two files exist, each HR image once."""
    lr_root, hr_exist = str(config.lr or root), set(image_names(root))
    lr_exist = set(image_names(lr_root)) if config.lr else hr_exist
    rejects: Rejects = []
    pairs: dict[str, str] = {}
    for hr, lr in entries:
        assert lr
        if hr not in hr_exist:
            rejects.append(reject(hr, f"{root}/{hr}"))
        elif lr not in lr_exist:
            rejects.append(reject(hr, f"{lr_root}/{lr}", "no LR image has this name"))
        elif hr in pairs:
            rejects.append(reject(hr, f"{lr_root}/{lr}", f"the list has another LR image for '{hr}'"))
        else:
            pairs[hr] = lr
    if not pairs:
        raise UserError(
            f"list: no pair of '{config.list}' is in '{root}' and '{lr_root}': '{entries[0].hr}, {entries[0].lr}', ..."
        )
    items = [item._replace(lr=f"{lr_root}/{lr}") for item, lr in zip(Files(root, tuple(pairs)), pairs.values(), strict=True)]
    return Listing(items, scale=config.scale, rejects=rejects)


def _listed(root: str, files: Named, entries: Sequence[Entry], rejects: Rejects) -> Named:
    """The HR images that a list names, by their paths below INPUT or below its folder HR."""
    by_path = {path.removeprefix(f"{Path(root)}/"): (name, path) for name, path in files}
    below_hr = {path.partition("/")[2]: file for path, file in by_path.items() if path.lower().startswith("hr/")}
    result = []
    for entry in entries:
        if file := by_path.get(entry.hr) or below_hr.get(entry.hr):
            result.append(file)
        else:
            rejects.append(reject(entry.hr, f"{root}/{entry.hr}"))
    if not result:
        raise UserError(f"list: no image of the list is in '{root}': '{entries[0].hr}', ...")
    return result


def _files(root: Path, lr: Path | None) -> tuple[Named, Named]:
    """All HR and all LR images."""
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


def _named(folder: Path) -> Named:
    return [(name[: name.rindex(".")], f"{folder}/{name}") for name in image_names(folder)]


def _by_name(files: Named, kind: str, rejects: Rejects) -> dict[str, str]:
    """Paths by name without marks. Images that then share a name are rejected, since their partner is not known."""
    by_name: dict[str, list[str]] = {}
    for name, path in files:
        by_name.setdefault(MARK.sub("", name) or name, []).append(path)
    for name, paths in by_name.items():
        if len(paths) > 1:
            reason = f"{len(paths)} {kind} images are called '{name}'"
            rejects.extend({"key": clean_key(name), "path": path, "reason": reason} for path in paths)
    return {name: paths[0] for name, paths in by_name.items() if len(paths) == 1}
