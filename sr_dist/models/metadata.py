"""The metadata of a weights file: JSON under one key of the .safetensors header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sr_dist.core.formats import refuse_unknown, stamp
from sr_dist.recipe.labels import Labels

METADATA = "sr_dist"  # the key
FORMAT = 1  # 0.1.0 wrote none


def write_metadata(facts: dict[str, Any]) -> dict[str, str]:
    return {METADATA: json.dumps({**stamp(FORMAT), **facts})}


def generator_metadata(section: dict[str, Any], scale: int) -> dict[str, str]:
    """The metadata of a generator's weights file."""
    return write_metadata({"generator": section, "scale": scale})


def classifier_metadata(section: dict[str, Any], labels: Labels, size: int | None) -> dict[str, str]:
    """The metadata of a classifier's weights file. The network itself normalizes its images."""
    stated = {"kind": labels.kind, "names": list(labels.names)}
    return write_metadata({"classifier": section, "labels": stated, "size": size})


def read_metadata(metadata: dict[str, str], file: Path, key: str) -> dict[str, Any]:
    """The facts; empty for a file without metadata of sr_dist."""
    facts = json.loads(metadata.get(METADATA, "{}"))
    refuse_unknown(facts, FORMAT, file, key)
    return facts
