"""INPUT is a folder in BasicSR's LMDB form: data.mdb, and meta_info.txt with a line for each image, such as
`0001_s001.png (480,480,3) 1`. --lr=FOLDER has the LR images under the same keys. Needs `pip install 'sr_dist[lmdb]'`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from shards.image_header import Rejected
from shards.items import Item, Listing, clean_key
from shards.meta_info import read_names, without_suffix
from sr_dist.core.config import Absent, Settings
from sr_dist.core.errors import UserError

META, DATA = "meta_info.txt", "data.mdb"

_environments: dict[str, Any] = {}  # open ones of this process by folder: LMDB allows one, and none that a fork has inherited


class Config(Settings):
    lr: Annotated[Path | None, Absent] = None
    """The LMDB folder of the LR images."""
    scale: Annotated[int, Field(gt=1)] = 4
    """How many times smaller the LR images are."""


def listing(root: str, config: Config) -> Listing:
    hr = _paths(Path(root), "INPUT")
    if config.lr is None:
        if "scale" in config.model_fields_set:
            raise UserError("scale: is that of stored LR images; give --lr=FOLDER too")
        return Listing([Item(clean_key(key), path) for key, path in hr.items()])
    lr = _paths(config.lr, "lr")
    items = [Item(clean_key(key), path, lr=lr[key]) for key, path in hr.items() if key in lr]
    if not items and hr and lr:
        raise UserError(f"lr: no image of '{config.lr}' has the key of one of INPUT: '{min(hr)}', '{min(lr)}', ...")
    rejects = [
        {"key": clean_key(key), "path": paths[key], "reason": f"no {kind} image has this key"}
        for paths, others, kind in ((hr, lr, "LR"), (lr, hr, "HR"))
        for key in paths.keys() - others.keys()
    ]
    return Listing(items, scale=config.scale, rejects=sorted(rejects, key=lambda row: row["path"]))


def read(item: Item) -> bytes:
    return _value(item.path)


def read_lr(item: Item) -> bytes:
    assert item.lr
    return _value(item.lr)


def _paths(folder: Path, option: str) -> dict[str, str]:
    """Sorted keys of the images, each with the path by which `read` finds it."""
    for name in (DATA, META):
        if not (folder / name).is_file():
            raise UserError(f"{option}: '{folder}' has no {name}, so it is no LMDB folder in BasicSR's form")
    _check(folder, option)
    keys = sorted({without_suffix(name) for name in read_names(folder / META, option)})
    made: dict[str, str] = {}
    for key in keys:
        if (other := made.setdefault(clean_key(key), key)) != key:
            raise UserError(f"{option}: '{other}' and '{key}' of '{folder}' differ only in characters that keys cannot have")
    return {key: f"{folder}/{DATA}:{key}" for key in keys}


def _check(folder: Path, option: str) -> None:
    """Refuses what is no database, or is cut short: LMDB maps the file, and reading behind its end ends the process."""
    lmdb, file = _library(), folder / DATA
    while _environments:
        _environments.popitem()[1].close()
    try:
        with _opened(str(folder)) as environment:
            needed = environment.stat()["psize"] * (environment.info()["last_pgno"] + 1)
    except (lmdb.Error, OSError) as problem:
        raise UserError(f"{option}: '{file}' cannot be opened: {problem}") from None
    if file.stat().st_size < needed:
        raise UserError(f"{option}: '{file}' is cut short: it has {file.stat().st_size} bytes and needs {needed}")


def _value(path: str) -> bytes:
    folder, _, key = path.partition(f"/{DATA}:")
    lmdb = _library()
    try:
        if folder not in _environments:
            _environments[folder] = _opened(folder)
        with _environments[folder].begin() as transaction:
            value = transaction.get(key.encode("utf-8", "surrogateescape"))
    except lmdb.Error as problem:
        raise Rejected(f"cannot be read from {DATA}: {problem}") from None
    if value is None:
        raise Rejected(f"{META} names it, but {DATA} has no such key")
    return value


def _opened(folder: str) -> Any:
    return _library().open(folder, readonly=True, lock=False, readahead=False, create=False)


def _library() -> Any:
    try:
        import lmdb  # not everybody has it, and --help loads every source
    except ImportError:
        raise UserError("SOURCE: 'lmdb' needs the package lmdb; pip install 'sr_dist[lmdb]'") from None
    return lmdb
