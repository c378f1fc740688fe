"""Selects samples of a data set: those of `data.select` and, among them, one part of `data.split`. Both depend only on content
hashes, so they are the same on every machine, in any order and in any number of shards.

    {each_class: 180}                        180 samples of every class
    {Eyeglasses: 13000, rest: 27000}         13,000 with the attribute, 27,000 of all others
    {tench: 100, chow: 100}                  two classes
    {Wearing_Hat: at most 10000, rest: 15000}    all that there are, if they are fewer

A sample that fits several groups counts for the first.

    split: [0.7, 0.15, 0.15]                 training, validation, test; the hash of a sample determines its part
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sr_dist.core.errors import UserError, nearest
from sr_dist.data.format import Shards, attribute_values
from sr_dist.recipe.labels import CLASS, Labels
from sr_dist.recipe.sections import Count, Data, at_most

PARTS = ("training", "validation", "test")
EACH_CLASS = "each_class ("  # before the name of a group's class
Group = tuple[str, Count, np.ndarray]  # name, count, and a mask of the samples that fit


@dataclass(frozen=True)
class Portion:
    """The samples of `select` that are in one part of a split. By default all samples."""

    select: Mapping[str, Count] = field(default_factory=dict)
    split: tuple[float, ...] = ()
    part: int = 0
    key: str = "data.select"  # the recipe key in errors

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in self.select.items())
        part = f"the {PARTS[self.part]} part of {list(self.split)}" if self.split else ""
        return " of ".join(filter(None, (part, counts))) + " by content hash" if part or counts else "all"

    def describe(self) -> dict[str, Any]:
        """For the report, as JSON."""
        return {"select": dict(self.select), "split": list(self.split), "part": PARTS[self.part] if self.split else None}


def portion_of(data: Data, part: int = 0) -> Portion:
    """The samples of data.train for training (0), validation (1) or the final test (2)."""
    part = part if data.split else 0
    for name, (with_it, without_it) in data.balance.items():
        return Portion({name: with_it, "rest": without_it}, data.split, part, "data.balance")
    return Portion(data.select, data.split, part)


def portion_rows(shards: Shards, portion: Portion) -> list[np.ndarray]:
    """The rows of every shard that belong to a portion, in tar order."""
    return rows_of_parts(shards, portion)[portion.part if portion.split else 0]


def rows_of_parts(shards: Shards, portion: Portion) -> list[list[np.ndarray]]:
    """For each part of the split, the selected rows of every shard; a single part without a split. Reads each index once."""
    starts, split = _starts(shards), portion.split
    taken, parts = np.ones(starts[-1], bool), np.zeros(starts[-1], np.int8)
    if portion.select:
        taken, _, hashes = _select(shards, portion)
        parts = part_of(hashes, split) if split else parts
    elif split:
        indexes = map(shards.index, range(len(shards.manifest.shards)))
        parts = np.concatenate([part_of(index["hash"], split) for index in indexes])
    bounds = list(zip(starts[:-1], starts[1:], strict=True))
    masks = [taken & (parts == part) for part in range(max(len(split), 1))]
    return [[np.flatnonzero(mask[low:high]) for low, high in bounds] for mask in masks]


def part_of(hashes: np.ndarray, split: Sequence[float]) -> np.ndarray:
    """The part of the split that each sample is in. It depends on the second half of the hash: `select` takes samples in the
    order of the first half, and the selected samples must fall into all parts.
    """
    fractions = np.frombuffer(np.array(hashes).tobytes(), "<u8").reshape(-1, 2)[:, 1] / 2.0**64
    return np.searchsorted(np.cumsum(split)[:-1], fractions, side="right")


def short_groups(shards: Shards, portion: Portion) -> Iterator[str]:
    """The groups that have fewer samples than `at most N` allows, one line each."""
    limits = {name: at_most(count) for name, count in portion.select.items()}
    if not any(limits.values()):
        return
    for name, count in _select(shards, portion)[1].items():  # each_class has a group per class
        limit = limits.get("each_class" if name.startswith(EACH_CLASS) else name)
        if limit and count < limit:
            yield f"{portion.key}.{name}: {count:,} samples, which are all (at most {limit:,})"


def _select(shards: Shards, portion: Portion) -> tuple[np.ndarray, dict[str, int], np.ndarray]:
    """A mask of all samples, how many each group has, and the hashes of all samples."""
    hashes, keys, classes, attributes = (np.concatenate(column) for column in zip(*_columns(shards), strict=True))
    by_hash = np.lexsort((keys, hashes))  # samples with equal contents are sorted by key

    free = np.ones(len(hashes), bool)
    taken = np.zeros(len(hashes), bool)
    counts: dict[str, int] = {}
    for name, count, fits in _groups(shards, portion, classes, attributes):
        candidates = by_hash[(fits & free)[by_hash]]
        limit = at_most(count)
        if limit is None and len(candidates) < int(count):
            raise UserError(
                f"{portion.key}.{name}: {count} samples wanted, but there are {len(candidates)}; 'at most {count}' takes these"
            )
        taken[candidates[: limit or int(count)]] = True
        counts[name] = min(len(candidates), limit or int(count))
        free &= ~fits
    return taken, counts, hashes


def _columns(shards: Shards) -> Iterator[tuple[np.ndarray, ...]]:
    """Hashes, keys, classes and attributes of every shard. They are copied, so that only one index is open at a time."""
    for number in range(len(shards.manifest.shards)):
        index = shards.index(number)
        attributes = attribute_values(index["attributes"], len(shards.manifest.attributes))
        yield np.array(index["hash"]).view("S16"), np.array(index["key"]), np.array(index["class"]), attributes


def _groups(shards: Shards, portion: Portion, classes: np.ndarray, attributes: np.ndarray) -> Iterator[Group]:
    """The groups of `select`. `rest` comes last, wherever it is in the recipe."""
    manifest = shards.manifest
    for name, count in sorted(portion.select.items(), key=lambda item: item[0] == "rest"):
        if name == "each_class" and not manifest.classes:
            raise UserError(f"{portion.key}.each_class: '{shards.folder}' has no classes")
        if name == "each_class":
            for number, class_name in enumerate(manifest.classes):
                yield f"{EACH_CLASS}{class_name})", count, classes == number
        elif name == "rest":
            yield name, count, np.ones(len(classes), bool)
        elif name in manifest.attributes:
            yield name, count, attributes[:, manifest.attributes.index(name)] == 1
        elif name in manifest.classes:
            yield name, count, classes == manifest.classes.index(name)
        else:
            known = ["each_class", "rest", *manifest.attributes, *manifest.classes]
            raise UserError(f"{portion.key}.{name}: no class or attribute of that name{nearest(name, known)}")


def shares(shards: Shards, portion: Portion, labels: Labels) -> tuple[float, ...]:
    """The share of each label in a portion. Samples without a class are not counted among the classes."""
    rows = np.concatenate([low + selected for low, selected in zip(_starts(shards), portion_rows(shards, portion), strict=False)])
    _, _, classes, attributes = (np.concatenate(column)[rows] for column in zip(*_columns(shards), strict=True))
    if labels.kind == CLASS:
        known = classes[classes >= 0]
        fractions = np.bincount(known, minlength=len(labels.names)) / max(len(known), 1)
    else:
        fractions = attributes[:, [shards.manifest.attributes.index(name) for name in labels.names]].mean(0)
    return tuple(round(float(share), 6) for share in fractions)


def _starts(shards: Shards) -> np.ndarray:
    """The number of the first sample of each shard, and the number of samples."""
    return np.concatenate([[0], np.cumsum([shard.samples for shard in shards.manifest.shards])]).astype(np.int64)
