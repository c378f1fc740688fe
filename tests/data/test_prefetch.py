"""How far ahead shards are fetched, and how many at a time: from measured rates, within the cache, unless the recipe says."""

from __future__ import annotations

import re
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from loaders import SCALE, logged_messages, make_loader, patience, settings
from processes import LONGEST
from servers import serving

from sr_dist.core import ranks
from sr_dist.core.errors import UserError
from sr_dist.data.loader import LoaderConfig
from sr_dist.data.remote import sources
from sr_dist.data.remote.cache import Cache
from sr_dist.data.remote.prefetch import Depth, Limits, Prefetcher

SAMPLES, BATCH, STEPS = 24, 4, 6
MB = 1_000_000


def limits(**changes) -> Limits:
    """Positions of 0.1 MB, shards of 10 MB or 100 positions, a window of 200 positions, a cache for 100 shards."""
    defaults = {"horizon": 200, "most_horizon": 9800, "most_at_once": 25, "position_bytes": 0.1 * MB, "shard_bytes": 10 * MB}
    return Limits(**{**defaults, **changes})


def test_more_are_fetched_at_a_time_until_the_store_gives_what_the_steps_read():
    """100 positions a second read 10 MB/s; a download gives 2 MB/s, so 10 x 1.25 / 2 = 6.25 are needed: 7."""
    depth = Depth(limits())
    depth.step(100, 1.0)
    assert (depth.at_once, depth.horizon) == (2, 200)
    assert depth.downloaded(10 * MB, 5.0) == ""  # as many downloads are measured as there are at a time
    line = depth.downloaded(10 * MB, 5.0)
    # Two downloads of 5 s are 1000 positions: 1200 with the window, 12 shards.
    assert (depth.at_once, depth.horizon) == (4, 1200)
    assert line == "data: 4 shards fetched at a time, up to 12 ahead: steps read 10 MB/s, and a download gives 2 MB/s"
    lines = [depth.downloaded(10 * MB, 5.0) for _ in range(4)]
    assert (depth.at_once, depth.horizon) == (7, 1200)
    assert lines[-1] and not any(lines[:-1])
    assert [depth.downloaded(10 * MB, 5.0) for _ in range(14)] == [""] * 14  # nothing changes, nothing is logged


def test_a_link_that_is_full_gets_no_more_downloads():
    """Twice as many at a time get half the bytes each."""
    depth = Depth(limits())
    depth.step(100, 1.0)
    for _ in range(2):
        depth.downloaded(10 * MB, 5.0)
    for _ in range(4):
        depth.downloaded(10 * MB, 10.0)
    assert depth.at_once == 4
    last = [depth.downloaded(10 * MB, 20.0) for _ in range(4)][-1]
    assert depth.at_once == 4
    assert last.endswith("a download gives 0.5 MB/s; the store is slower than the steps")


def test_the_cache_bounds_both():
    depth = Depth(limits(most_horizon=300, most_at_once=3))
    depth.step(100, 1.0)
    for _ in range(20):
        depth.downloaded(10 * MB, 50.0)
    assert (depth.at_once, depth.horizon) == (3, 300)
    assert Depth(limits(most_at_once=1)).at_once == 1
    small = Depth(limits(most_horizon=-50))  # less than a window: as far as before
    small.step(100, 1.0)
    small.downloaded(10 * MB, 5.0)
    small.downloaded(10 * MB, 5.0)
    assert small.horizon == 200


def test_the_recipe_takes_precedence():
    depth = Depth(limits(at_once=1, ahead=5))
    depth.step(100, 1.0)
    assert [depth.downloaded(10 * MB, 5.0) for _ in range(5)] == [""] * 5
    assert (depth.at_once, depth.horizon) == (1, 500)


def test_nothing_changes_before_a_step_is_measured():
    depth = Depth(limits())
    assert [depth.downloaded(10 * MB, 5.0) for _ in range(5)] == [""] * 5
    assert (depth.at_once, depth.horizon) == (2, 200)


def test_training_does_not_wait_while_the_next_shard_is_worked_out():
    entered, released = threading.Event(), threading.Event()

    def tasks():
        entered.set()
        assert released.wait(LONGEST)
        yield 0, lambda: 0

    with patience(LONGEST):
        prefetcher = Prefetcher(tasks(), Depth(limits()), 0)
        assert entered.wait(LONGEST)
        prefetcher.advance(4, 0.1)  # would hang
        prefetcher.close()
        released.set()


def test_a_shard_that_cannot_be_fetched_stops_no_other_and_order_and_horizon_are_kept():
    """One at a time: 0 to 3 are near from the start, 5 after an advance by 1, 9 never."""
    fetched: list[int] = []

    def task(position: int):
        def fetch() -> int:
            fetched.append(position)
            if position == 1:
                raise UserError("the server is away")
            return 0

        return position, fetch

    with patience(LONGEST):
        prefetcher = Prefetcher(map(task, (0, 1, 2, 3, 5, 9)), Depth(limits(horizon=4, at_once=1)), 0)
        while fetched != [0, 1, 2, 3]:
            time.sleep(0.005)
        prefetcher.advance(1, 0.1)
        while fetched != [0, 1, 2, 3, 5]:
            time.sleep(0.005)
        prefetcher.close()


@pytest.fixture(scope="module")
def small_shards(photos, tmp_path_factory) -> Path:
    """24 photographs in 24 shards."""
    from shards.build import build

    out = tmp_path_factory.mktemp("each") / "photos"
    build("class_folders", str(photos), out, {"per_shard": "1"})
    return out


@contextmanager
def as_rank(monkeypatch):
    """Each thread is the rank of a node of its own."""
    local = threading.local()
    with monkeypatch.context() as patch:
        patch.setattr(ranks, "rank", lambda: local.rank)
        patch.setattr(ranks, "size", lambda: 2)
        patch.setattr(ranks, "nodes", lambda: [0, 1])
        patch.setattr(ranks, "is_first", lambda: local.rank == 0)
        yield local


class Waiting:
    """The seconds for which a loader's steps wait for data."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def __call__(self):
        begin = time.monotonic()
        yield
        self.seconds += time.monotonic() - begin


def two_nodes(store, folder: Path, local, **data) -> tuple[list[list[str]], float]:
    """The keys of each step, and the seconds of waiting of both nodes."""
    config = LoaderConfig(settings(train=store.url, batch=BATCH, window=8, **data), 0, SCALE, 1, STEPS, 3)
    keys: list[list[str]] = [[] for _ in range(STEPS)]
    waits, failures = [Waiting(), Waiting()], []
    shards = [sources.open_shards(store.url, "data.train", Cache(folder / f"node{node}", 10**9)) for node in range(2)]

    def node(number: int) -> None:
        local.rank = number
        loader = make_loader([shards[number]], config)
        try:
            for step, (batch,) in loader.steps(1, waits[number]):
                keys[step - 1] += batch.keys
                time.sleep(0.01)  # the step itself
        except BaseException as error:
            failures.append(error)
        finally:
            loader.close()

    threads = [threading.Thread(target=node, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    return keys, sum(wait.seconds for wait in waits)


def test_two_nodes_wait_less_for_a_slow_store_and_read_the_same_samples(small_shards, tmp_path, monkeypatch):
    """A connection takes about 0.3 s for a shard, and steps read one in 5 ms."""
    sources._fetched.cache_clear()
    largest = max(path.stat().st_size for path in small_shards.glob("*.tar"))
    results = {}
    with serving(small_shards) as store, as_rank(monkeypatch) as local, patience(LONGEST):
        store.rate = largest / 0.3
        for name, data in {"one": {"fetch_at_once": 1}, "measured": {}}.items():
            store.most_connections = 0
            with logged_messages() as logged:
                results[name] = (*two_nodes(store, tmp_path / name, local, **data), store.most_connections)
        for thread in threading.enumerate():
            if thread.name == "prefetch":
                thread.join(LONGEST)
    (keys, waited, few), (measured_keys, measured_wait, many) = results["one"], results["measured"]
    assert [sorted(step) for step in keys] == [sorted(step) for step in measured_keys]
    assert len({key for step in measured_keys for key in step}) == SAMPLES  # exactly once in the epoch
    assert few <= 4 < many  # one that fetches ahead and one that reads, on each node
    assert measured_wait < waited
    line = next(message for message in logged if "fetched at a time" in message)
    print(f"waited {waited:.2f} s with one download at a time, {measured_wait:.2f} s with a measured depth: {line}")
    pattern = (
        r"data: \d+ shards fetched at a time, up to \d+ ahead: steps read [\d.,e+]+ MB/s, and a download gives [\d.e-]+ MB/s"
    )
    assert re.match(pattern, line), line
