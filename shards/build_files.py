"""The files of an unfinished build: `.build.json`, which says what decides its bytes, and NAME-000000.part beside each finished
shard, which says what the manifest will say of it. The merge removes them.

Both have a format number. Those of version 0.1.0 have none; they are of format 1.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shards.writer import WrittenShard
from sr_dist.core.config import typed
from sr_dist.core.errors import UserError
from sr_dist.core.files import write_whole
from sr_dist.core.version import __version__
from sr_dist.data.format import ShardEntry

FORMAT = 1
PLAN_FILE = ".build.json"


class UnknownFormat(UserError):
    """A file of an unfinished build that another version wrote."""


def write_plan_file(folder: Path, fingerprint: dict[str, Any]) -> None:
    write_whole(folder / PLAN_FILE, (json.dumps({"format": FORMAT, **fingerprint}, indent=1) + "\n").encode())


def read_plan_file(folder: Path) -> dict[str, Any]:
    path = folder / PLAN_FILE
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        check_format(path, tree, tree.get("tool", {}).get("sr_dist"))
    except UnknownFormat:
        raise
    except (OSError, ValueError, AttributeError) as problem:
        raise UserError(f"OUT: '{path}' cannot be read: {problem}; remove the folder '{folder}'") from None
    tree.pop("format", None)
    return tree


def part_file(shard: Path) -> Path:
    return shard.with_suffix(".part")


def write_part_file(shard: Path, written: WrittenShard) -> None:
    tree = {"format": FORMAT, "sr_dist": __version__, **vars(written), "entry": written.entry.model_dump()}
    write_whole(part_file(shard), json.dumps(tree).encode())


def read_part_file(shard: Path) -> WrittenShard:
    """Raises one of several errors if the file is damaged."""
    path = part_file(shard)
    tree = json.loads(path.read_bytes())
    check_format(path, tree, tree.pop("sr_dist", None))
    tree.pop("format", None)
    return WrittenShard(**{**tree, "entry": typed(ShardEntry, tree["entry"])})


def check_format(path: Path, tree: dict[str, Any], version: object) -> None:
    if tree.get("format", 1) != FORMAT:
        raise UnknownFormat(
            f"OUT: '{path}' has format {tree['format']} and was written by sr_dist {version or 'of an unknown version'}; "
            f"sr_dist {__version__} reads format {FORMAT}; finish the build with the version that began it, or remove the folder"
        )
