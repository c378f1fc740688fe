"""How shards from elsewhere are fetched at scale: a simulation with our own order and division of batches, without images.

    python benchmarks/streaming.py [--steps=300]

Nodes of eight ranks take steps together. Each node has a link of a given bandwidth, on which it fetches one shard after the
other: those that its ranks read in the steps ahead, as many as our prefetcher takes. A step begins when the slowest node has its
shards. Printed for each case: bytes that a node fetches in an epoch, the share of time that steps wait, the same if only shards
that are at home on the node are fetched ahead of its workers (as until 0.2), and the cache that holds a shard from its first to
its last use.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np

from sr_dist.data.near_home import parts_of
from sr_dist.data.order import Order, home_node

PER_RANK, PER_NODE = 16, 8  # images per step of a rank, ranks of a node
SHARD, IMAGE = 1000, 110e3  # samples of a shard, bytes of an image (ImageNet)
SECONDS = 0.5  # of a step without waiting
WINDOW = 8192
READ_AHEAD = 4  # steps that the workers of a rank read ahead


@dataclass
class Case:
    samples: int
    ranks: int
    gigabits: float
    slow: float = 0.0  # share of the nodes whose link has a tenth of the bandwidth


@dataclass
class Result:
    steps: int
    fetched: float  # shards of an average node, in the simulated steps
    waiting: float  # share of the time
    waiting_home: float  # the same, if only shards that are at home on a node are fetched ahead of its workers
    cache: int  # shards that the fullest node holds


def simulate(case: Case, most_steps: int) -> Result:
    order = Order([SHARD] * (case.samples // SHARD), 0, WINDOW)
    nodes, batch = max(case.ranks // PER_NODE, 1), case.ranks * PER_RANK
    steps = min(case.samples // batch, most_steps)
    used = [used_shards(order, step * batch, batch, nodes) for step in range(steps)]
    first_use: dict[tuple[int, int], int] = {}
    last_use: dict[tuple[int, int], int] = {}
    for step, pairs in enumerate(used):
        for pair in pairs:
            first_use.setdefault(pair, step)
            last_use[pair] = step
    shares = [waiting(case, order, used, nodes, home_only) for home_only in (False, True)]
    return Result(steps, len(first_use) / nodes, *shares, fullest(first_use, last_use, steps))


def used_shards(order: Order, start: int, batch: int, nodes: int) -> list[tuple[int, int]]:
    """The (node, shard) of one step."""
    shards = order.shards_at(range(start, start + batch))
    if nodes == 1:
        return [(0, int(shard)) for shard in np.unique(shards)]
    parts = parts_of(shards, np.full(nodes, batch // nodes))
    return list(zip(parts.node.tolist(), parts.shard.tolist(), strict=True))


def waiting(case: Case, order: Order, used: list[list[tuple[int, int]]], nodes: int, home_only: bool) -> float:
    """The share of the time in which a step waits for the slowest node. All begin with empty caches."""
    seconds = np.full(nodes, SHARD * IMAGE * 8 / (case.gigabits * 1e9))  # for a shard
    seconds[: round(case.slow * nodes)] *= 10
    free, ready = np.zeros(nodes), {}  # when a link is free, and when a shard has arrived
    needs, batch, now, waited = order.shards_from(0), case.ranks * PER_RANK, 0.0, 0.0
    shard, position = next(needs)
    ahead = READ_AHEAD if home_only else max(WINDOW // batch, 2 * READ_AHEAD)
    for step, pairs in enumerate(used):
        for pair in (pair for later in used[step : step + ahead + 1] for pair in later):
            fetch(pair, now, free, ready, seconds)
        while home_only and position <= step * batch + WINDOW and position < order.samples:
            fetch((int(home_node(shard, nodes)), shard), now, free, ready, seconds)
            shard, position = next(needs)
        begin = max([now, *(fetch(pair, now, free, ready, seconds) for pair in pairs)])
        waited += begin - now if step else 0.0  # the first step of a run waits in any case
        now = begin + SECONDS
    return waited / (waited + SECONDS * len(used))


def fetch(pair: tuple[int, int], now: float, free: np.ndarray, ready: dict[tuple[int, int], float], seconds: np.ndarray) -> float:
    """When a node has a shard. A link fetches one shard after the other."""
    node = pair[0]
    if pair not in ready:
        free[node] = max(free[node], now) + seconds[node]
        ready[pair] = float(free[node])
    return ready[pair]


def fullest(first_use: dict[tuple[int, int], int], last_use: dict[tuple[int, int], int], steps: int) -> int:
    """The most shards that a node holds at once, if it drops each after its last use."""
    changes: dict[int, np.ndarray] = {}
    for pair, first in first_use.items():
        of_node = changes.setdefault(pair[0], np.zeros(steps + 1, np.int64))
        of_node[first] += 1
        of_node[last_use[pair] + 1] -= 1
    return max(int(np.cumsum(change).max()) for change in changes.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="steps that are simulated of each case, of an epoch at most")
    most_steps = parser.parse_args().steps
    print("| samples | ranks | link of a node | slow nodes | a node fetches | of the data | waiting | home only | cache |")
    print("|---|---|---|---|---|---|---|---|---|")
    begin = time.perf_counter()
    for samples in (1_280_000, 100_000_000):
        for ranks in (1, 8, 64, 512, 4096):
            for gigabits, slow in ((10, 0.0), (1, 0.0), (10, 0.05)):
                if slow and ranks < 512:
                    continue
                case = Case(samples, ranks, gigabits, slow)
                result = simulate(case, most_steps)
                share = result.fetched * SHARD / (result.steps * ranks * PER_RANK)  # of what all ranks read in these steps
                share = min(share, 1.0)  # a few steps of one node read parts of shards
                print(
                    f"| {samples / 1e6:g} M | {ranks} | {gigabits} Gbit/s | {slow:.0%} "
                    f"| {share * samples * IMAGE / 1e9:,.4g} GB | {share:.1%} "
                    f"| {result.waiting:.1%} | {result.waiting_home:.1%} | {result.cache * SHARD * IMAGE / 1e9:.2f} GB |",
                    flush=True,
                )
    conditions = f"steps of {SECONDS} s, {PER_RANK} images per rank, shards of {SHARD} x {IMAGE / 1e3:g} KB"
    print(f"\n{time.perf_counter() - begin:.0f} s; {conditions}; the first {most_steps} steps of an epoch at most")


if __name__ == "__main__":
    main()
