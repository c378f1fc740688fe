"""Which samples of a batch each node takes, so that most shards are fetched by one node.

Each node takes exactly as many samples as its ranks need, those of its own shards first. The excess goes to the next node with
room. The shards with the highest numbers are given away, always the same ones, so that few are fetched twice.

Every rank works this out by itself. The division counts samples per shard, so it takes a step per shard and node, not per
sample; only the samples of one node are sorted.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sr_dist.data.order import home_node


class Parts(NamedTuple):
    """Parts of shards, and the nodes that take them: samples `low` to `high` of a shard, counted in the order of the batch."""

    shard: np.ndarray
    node: np.ndarray
    low: np.ndarray
    high: np.ndarray


def parts_of(shards: np.ndarray, room: np.ndarray) -> Parts:
    """Divides a batch. Sample i is in shard `shards[i]`; node n takes `room[n]` samples."""
    assert room.sum() == len(shards)
    counts = np.bincount(shards)
    present = np.flatnonzero(counts)
    counts = counts[present]
    home = home_node(present, len(room))
    by_home = np.argsort(home, kind="stable")  # the shards of each node, by number
    ends = np.cumsum(counts[by_home])
    of_node = np.bincount(home, counts, len(room)).astype(np.int64)
    before = np.empty_like(counts)  # the samples of the same home in shards with lower numbers
    before[by_home] = ends - counts[by_home] - (np.cumsum(of_node) - of_node)[home[by_home]]
    stay = np.clip(room[home] - before, 0, counts)
    own = Parts(present, home, np.zeros_like(stay), stay)
    given = _parts_of_excess(own, counts, (room - np.minimum(of_node, room)).tolist())
    some = stay > 0
    return Parts(*(np.concatenate([staying[some], away]) for staying, away in zip(own, given, strict=True)))


def _parts_of_excess(own: Parts, counts: np.ndarray, room: list[int]) -> Parts:
    """The samples of each shard that its home has no room for: to the next node with room. `room` is what is left."""
    nodes = len(room)
    following = [(node + 1) % nodes for node in range(nodes)]  # of a node without room; shortened as it is used

    def next_with_room(node: int) -> int:
        full = []
        while not room[node]:
            full.append(node)
            node = following[node]
        for each in full:
            following[each] = node
        return node

    result = []
    excess = np.flatnonzero(own.high < counts)
    columns = (own.shard[excess], own.node[excess], own.high[excess], counts[excess])
    for shard, home, low, end in zip(*(column.tolist() for column in columns), strict=True):
        while low < end:
            node = next_with_room(home)
            high = min(end, low + room[node])
            result.append((shard, node, low, high))
            room[node] -= high - low
            low = high
    return Parts(*np.array(result, np.int64).reshape(-1, 4).T)


def indices_of(parts: Parts, shards: np.ndarray, node: int) -> np.ndarray:
    """The indices in the batch that a node takes, in order."""
    own = parts.node == node
    shard, size = parts.shard[own], int(shards.max(initial=0)) + 1
    low, high = np.zeros(size, np.int64), np.zeros(size, np.int64)  # by shard: no shard has two parts on one node
    low[shard], high[shard] = parts.low[own], parts.high[own]
    indices = np.flatnonzero((high > low)[shards])
    numbers = shards[indices]
    by_shard = np.argsort(numbers, kind="stable")
    counts = np.bincount(numbers, minlength=1)
    turn = np.empty_like(indices)  # which sample of its shard each one is
    turn[by_shard] = np.arange(len(indices)) - np.repeat(np.cumsum(counts) - counts, counts)
    return indices[(low[numbers] <= turn) & (turn < high[numbers])]
