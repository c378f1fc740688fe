"""The files of an unfinished build: `.build.json` has the settings that decide its bytes, and NAME-000000.part beside each
finished shard has that shard's entry of the manifest. The merge removes them.

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
from sr_dist.core.formats import STAMP, UnknownFormat, refuse_unknown, stamp
from sr_dist.core.json_text import read_json
from sr_dist.data.format import ShardEntry

FORMAT = 1
PLAN_FILE = ".build.json"
ADVICE = "finish the build with the version that began it, or remove the folder"


def write_plan_file(folder: Path, fingerprint: dict[str, Any]) -> None:
    write_whole(folder / PLAN_FILE, (json.dumps({"format": FORMAT, **fingerprint}, indent=1) + "\n").encode())


def read_plan_file(folder: Path) -> dict[str, Any]:
    path = folder / PLAN_FILE
    try:
        tree = read_json(path)
        refuse_unknown({"sr_dist": tree.get("tool", {}).get("sr_dist"), **tree}, FORMAT, path, "OUT", ADVICE)
    except UnknownFormat:
        raise
    except (OSError, ValueError, AttributeError) as problem:
        raise UserError(f"OUT: '{path}' cannot be read: {problem}; remove the folder '{folder}'") from None
    tree.pop("format", None)
    return tree


def part_file(shard: Path) -> Path:
    return shard.with_suffix(".part")


def write_part_file(shard: Path, written: WrittenShard) -> None:
    tree = {**stamp(FORMAT), **vars(written), "entry": written.entry.model_dump()}
    write_whole(part_file(shard), json.dumps(tree).encode())


def read_part_file(shard: Path) -> WrittenShard:
    """Raises one of several errors if the file is damaged."""
    path = part_file(shard)
    tree = read_json(path)
    refuse_unknown(tree, FORMAT, path, "OUT", ADVICE)
    tree = {name: value for name, value in tree.items() if name not in STAMP}
    return WrittenShard(**{**tree, "entry": typed(ShardEntry, tree["entry"])})
