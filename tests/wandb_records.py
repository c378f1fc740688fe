"""Reads the files that the client of W&B writes offline."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any


def records(run_folder: Path) -> list[Any]:
    """The records of all processes of a run, in order.

    The file has the format of a LevelDB log: blocks of 32 KiB that hold pieces of (crc32, length, kind). Kinds 1 and 4 end
    a record.
    """
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # waits until its service has written all records
    parsed = []
    for path in sorted((run_folder / "wandb").glob("offline-run-*/run-*.wandb")):
        data, place, piece = path.read_bytes(), 7, b""
        while place + 7 <= len(data):
            if (left := 32768 - place % 32768) < 7:
                place += left
                continue
            length, kind = struct.unpack("<4xHB", data[place : place + 7])
            piece += data[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):
                parsed.append(Record.FromString(piece))
                piece = b""
    return parsed


def of_kind(run_folder: Path, kind: str) -> list[Any]:
    return [getattr(record, kind) for record in records(run_folder) if record.WhichOneof("record_type") == kind]


def items(update: Any) -> dict[str, Any]:
    """The values of a record by name; media have a name per field, `name/field`."""
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in update}


def history(run_folder: Path) -> list[dict[str, Any]]:
    return [{**items(row.item), "step": row.step.num} for row in of_kind(run_folder, "history")]
