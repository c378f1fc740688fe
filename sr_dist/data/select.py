"""`data.select`: some samples of a data set, the same ones on every machine, chosen by content hash.

    {each_class: 180}                        180 samples of every class
    {Eyeglasses: 13000, rest: 27000}         13,000 with the attribute, 27,000 of all others
    {tench: 100, chow: 100}                  two classes
A sample that fits several lines counts for the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from sr_dist.data.format import Shards, attribute_values
from sr_dist.errors import UserError, nearest


def chosen_rows(shards: Shards, select: Mapping[str, int]) -> list[np.ndarray]:
    """The chosen rows of every shard, in tar order."""
    starts = np.concatenate([[0], np.cumsum([shard.samples for shard in shards.manifest.shards])])
    hashes, keys, classes, attributes = (np.concatenate(column) for column in zip(*_columns(shards), strict=True))
    by_hash = np.lexsort((keys, hashes))  # equal contents by their keys

    free = np.ones(len(hashes), bool)
    taken = np.zeros(len(hashes), bool)
    for name, count, fits in _groups(shards, select, classes, attributes):
        candidates = by_hash[(fits & free)[by_hash]]
        if len(candidates) < count:
            raise UserError(f"data.select.{name}: {count} samples wanted, {len(candidates)} are there")
        taken[candidates[:count]] = True
        free &= ~fits
    return [np.flatnonzero(taken[low:high]) for low, high in zip(starts[:-1], starts[1:], strict=True)]


def _columns(shards: Shards) -> Iterator[tuple[np.ndarray, ...]]:
    """Hashes, keys, classes and attributes of every shard, copied, so that no more than one index is open at a time."""
    for number in range(len(shards.manifest.shards)):
        index = shards.index(number)
        attributes = attribute_values(index["attributes"], len(shards.manifest.attributes))
        yield np.array(index["hash"]).view("S16"), np.array(index["key"]), np.array(index["class"]), attributes


def _groups(shards: Shards, select: Mapping[str, int], classes: np.ndarray, attributes: np.ndarray):
    """(name, count, mask) of every group; `rest` comes last, whatever its place in the recipe."""
    manifest = shards.manifest
    for name, count in sorted(select.items(), key=lambda item: item[0] == "rest"):
        if name == "each_class":
            for number, class_name in enumerate(manifest.classes):
                yield f"each_class ({class_name})", count, classes == number
        elif name == "rest":
            yield name, count, np.ones(len(classes), bool)
        elif name in manifest.attributes:
            yield name, count, attributes[:, manifest.attributes.index(name)] == 1
        elif name in manifest.classes:
            yield name, count, classes == manifest.classes.index(name)
        else:
            known = ["each_class", "rest", *manifest.attributes, *manifest.classes]
            raise UserError(f"data.select.{name}: no class or attribute of that name{nearest(name, known)}")
