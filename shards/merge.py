"""The end of a build: finds duplicates, writes the manifest and the lists, and tidies up. If it is killed, it can run again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from shards.plan import Plan
from shards.restarts import MARKED
from shards.writer import WrittenShard
from sr_dist.core.errors import UserError
from sr_dist.core.files import write_whole
from sr_dist.core.json_text import parse_json
from sr_dist.core.printable import plural
from sr_dist.data.format import FORMAT, Index, Manifest, ShardEntry, index_name, index_rows, write_manifest


def merge(plan: Plan, written: list[WrittenShard], dedupe: bool) -> Manifest:
    out = plan.out
    rejects = [*plan.listing.rejects, *(reject for shard in written for reject in shard.rejects)]
    rejects = [{**reject, "path": reject["path"].removeprefix(f"{plan.root}/")} for reject in rejects]
    write_lines(out / "rejects.jsonl", rejects)
    if not any(shard.entry.samples for shard in written):
        plan.clear()
        raise UserError(f"INPUT: none of {len(plan.order)} images can be a sample; '{out / 'rejects.jsonl'}' lists the reasons")
    entries = [shard.entry for shard in written]
    duplicates = listed_duplicates(out) if dedupe else None
    if duplicates is None:
        duplicates = find_duplicates(out, entries)
        write_lines(out / "duplicates.jsonl", duplicates)
    if dedupe:
        keys = {entry.name: {row["key"] for row in duplicates if row["shard"] == entry.name} for entry in entries}
        entries = [remove_from_index(out, entry, keys[entry.name]) for entry in entries]
    manifest = build_manifest(plan, written, entries)
    write_manifest(out, manifest)
    plan.tidy()
    print_summary(out, manifest, len(rejects), len(duplicates), dedupe)
    return manifest


def build_manifest(plan: Plan, written: list[WrittenShard], entries: list[ShardEntry]) -> Manifest:
    counts = {
        "converted": sum((Counter(shard.converted) for shard in written), Counter()),
        "restarts": sum((Counter(shard.restarts) for shard in written), Counter()),
    }
    return Manifest(
        format=FORMAT,
        samples=sum(entry.samples for entry in entries),
        min_side=min(shard.min_side for shard in written if shard.min_side),
        scale=plan.listing.scale,
        classes=tuple(plan.listing.classes),
        attributes=tuple(plan.listing.attributes),
        order={"seed": plan.fingerprint["seed"]},
        shards=tuple(entries),
        source={**plan.source, **{name: dict(sorted(count.items())) for name, count in counts.items() if count}},
        tool=plan.fingerprint["tool"],
    )


def print_summary(out: Path, manifest: Manifest, rejects: int, duplicates: int, dedupe: bool) -> None:
    counts = f"{plural(manifest.samples, 'sample')} in {plural(len(manifest.shards), 'shard')}"
    print(f"{counts}, {plural(len(manifest.classes), 'class', 'classes')}, smallest side {manifest.min_side}: {out}")
    if converted := manifest.source.get("converted"):
        print("converted to PNG: " + ", ".join(f"{count} {reason}" for reason, count in converted.items()))
    if restarts := manifest.source.get("restarts"):
        stayed = ", ".join(f"{count} {reason}" for reason, count in restarts.items() if reason != MARKED)
        print(
            f"restart markers were put into {plural(restarts.get(MARKED, 0), 'JPEG')}"
            + (f"; as they were: {stayed}" if stayed else "")
        )
    if rejects:
        print(
            f"{plural(rejects, 'input')} {'was' if rejects == 1 else 'were'} rejected; {out / 'rejects.jsonl'} lists the reasons"
        )
    if duplicates:
        action = "are left out" if dedupe else "stay in the shards; --dedupe leaves them out"
        print(f"samples with the bytes of another: {duplicates} ({out / 'duplicates.jsonl'}); they {action}")


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def find_duplicates(out: Path, entries: list[ShardEntry]) -> list[dict[str, str]]:
    """Every sample with the bytes of an earlier one, by the hashes in the indexes."""
    hashes = np.concatenate(
        [np.array(Index(out / index_name(entry.name))["hash"]).view("<u8").reshape(-1, 2) for entry in entries]
    )
    starts = np.concatenate([[0], np.cumsum([len(Index(out / index_name(entry.name))) for entry in entries])])
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable: of equals, the first sample comes first
    same = (hashes[order][1:] == hashes[order][:-1]).all(1)
    firsts = order[np.maximum.accumulate(np.where(np.r_[False, same], 0, np.arange(len(order))))]

    @lru_cache(maxsize=64)  # every open index is an open file
    def keys(shard: int) -> np.ndarray:
        return Index(out / index_name(entries[shard].name))["key"]

    def locate(sample: int) -> tuple[str, str]:
        """(name of the shard, key)"""
        shard = int(np.searchsorted(starts, sample, side="right")) - 1
        return entries[shard].name, keys(shard)[sample - starts[shard]].decode()

    duplicates = []
    for sample, first in sorted(zip(order[1:][same].tolist(), firsts[1:][same].tolist(), strict=True)):
        shard, key = locate(sample)
        duplicates.append({"key": key, "shard": shard, "same_as": locate(first)[1]})
    return duplicates


def listed_duplicates(out: Path) -> list[dict[str, str]] | None:
    """The list that a killed merge wrote. Indexes that it has shortened no longer show all duplicates."""
    try:
        return [parse_json(line) for line in (out / "duplicates.jsonl").read_text().splitlines()]
    except (OSError, ValueError):
        return None


def remove_from_index(out: Path, entry: ShardEntry, keys: set[str]) -> ShardEntry:
    """Removes samples from the index of a shard. The tar does not change."""
    path = out / index_name(entry.name)
    index = Index(path)
    remaining = np.array([key.decode() not in keys for key in index["key"]], bool)
    if not remaining.all():
        write_whole(path, index_rows(index, remaining))
    return entry.model_copy(update={"samples": int(remaining.sum())})
