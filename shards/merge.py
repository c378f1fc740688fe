"""The end of a build: duplicates found, manifest and lists written, the rest tidied away. Killed in it, it can be done again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from shards.plan import Plan
from shards.writer import WrittenShard
from sr_dist.core.errors import UserError
from sr_dist.core.files import write_whole
from sr_dist.data.format import FORMAT, Index, Manifest, ShardEntry, index_name, index_rows, write_manifest


def merge(plan: Plan, written: list[WrittenShard], dedupe: bool) -> Manifest:
    listing, out = plan.listing, plan.out
    rejects = [*listing.rejects, *(reject for shard in written for reject in shard.rejects)]
    rejects = [{**reject, "path": reject["path"].removeprefix(f"{plan.root}/")} for reject in rejects]
    write_lines(out / "rejects.jsonl", rejects)
    if not any(shard.entry.samples for shard in written):
        plan.clear()
        raise UserError(f"INPUT: none of {len(plan.order)} images can be a sample; the reasons are in '{out / 'rejects.jsonl'}'")
    entries = [shard.entry for shard in written]
    twice = found_before(out) if dedupe else None
    if twice is None:
        twice = duplicates(out, entries)
        write_lines(out / "duplicates.jsonl", twice)
    if dedupe:
        entries = [leave_out(out, entry, {row["key"] for row in twice if row["shard"] == entry.name}) for entry in entries]
    converted = sum((Counter(shard.converted) for shard in written), Counter())
    manifest = Manifest(
        format=FORMAT,
        samples=sum(entry.samples for entry in entries),
        min_side=min(shard.min_side for shard in written if shard.min_side),
        scale=listing.scale,
        classes=tuple(listing.classes),
        attributes=tuple(listing.attributes),
        order={"seed": plan.facts["seed"]},
        shards=tuple(entries),
        source={**plan.source, **({"converted": dict(sorted(converted.items()))} if converted else {})},
        tool=plan.facts["tool"],
    )
    write_manifest(out, manifest)
    plan.tidy()
    say(out, manifest, len(rejects), len(twice), dedupe, converted)
    return manifest


def say(out: Path, manifest: Manifest, rejects: int, twice: int, dedupe: bool, converted: Counter) -> None:
    classes = f"{len(manifest.classes)} classes"
    print(f"{manifest.samples} samples in {len(manifest.shards)} shards, {classes}, smallest side {manifest.min_side}: {out}")
    if converted:
        print("converted to PNG: " + ", ".join(f"{count} {change}" for change, count in sorted(converted.items())))
    if rejects:
        print(f"{rejects} inputs were rejected; the reasons are in {out / 'rejects.jsonl'}")
    if twice:
        action = "left out" if dedupe else "there all the same; --dedupe leaves them out"
        print(f"{twice} samples have the bytes of another ({out / 'duplicates.jsonl'}); they are {action}")


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def duplicates(out: Path, entries: list[ShardEntry]) -> list[dict[str, str]]:
    """Every sample whose bytes an earlier one has, found by the hashes in the indexes."""
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

    def place(sample: int) -> tuple[str, str]:
        shard = int(np.searchsorted(starts, sample, side="right")) - 1
        return entries[shard].name, keys(shard)[sample - starts[shard]].decode()

    found = []
    for sample, first in sorted(zip(order[1:][same].tolist(), firsts[1:][same].tolist(), strict=True)):
        shard, key = place(sample)
        found.append({"key": key, "shard": shard, "same_as": place(first)[1]})
    return found


def found_before(out: Path) -> list[dict[str, str]] | None:
    """The list of a merge that was killed: indexes that it has shortened no longer tell all of it."""
    try:
        return [json.loads(line) for line in (out / "duplicates.jsonl").read_text().splitlines()]
    except (OSError, ValueError):
        return None


def leave_out(out: Path, entry: ShardEntry, keys: set[str]) -> ShardEntry:
    """Takes samples out of the index of a shard; its tar stays as it is."""
    path = out / index_name(entry.name)
    index = Index(path)
    stays = np.array([key.decode() not in keys for key in index["key"]], bool)
    if not stays.all():
        write_whole(path, index_rows(index, stays))
    return entry.model_copy(update={"samples": int(stays.sum())})
