"""Loaders of fetched shards."""

from __future__ import annotations

import threading
from time import sleep

import numpy as np
import pytest
from loaders import SCALE, loader_of, logged_messages, make_loader, patience, read, same, settings
from processes import LONGEST
from servers import serving

from sr_dist.data.crops import Positions
from sr_dist.data.loader import Loader, LoaderConfig
from sr_dist.data.remote import sources
from sr_dist.data.remote.cache import Cache


@pytest.fixture
def store(photo_shards):
    sources._fetched.cache_clear()
    with serving(photo_shards) as server:
        yield server
        for thread in threading.enumerate():
            if thread.name == "prefetch":
                thread.join(LONGEST)


def remote_loader(store, tmp_path, *, run_folder=None, size=10**9, **data) -> Loader:
    shards = sources.open_shards(store.url, "data.train", Cache(tmp_path / "cache", size))
    config = LoaderConfig(settings(train=store.url, **data), seed=0, scale=SCALE, accumulate=1, steps=12, channels=3)
    return make_loader([shards], config, run_folder=run_folder)


@pytest.mark.parametrize("workers", [0, 2])
def test_fetched_shards_give_the_same_batches_and_are_fetched_once(store, photo_shards, tmp_path, workers):
    expected = read(loader_of(photo_shards, steps=12))
    with patience(LONGEST), logged_messages() as logged:
        steps = read(remote_loader(store, tmp_path, workers=workers, run_folder=tmp_path / "run"))
    assert all(same(expected[step][0], steps[step][0]) for step in expected)
    tars = sorted(path.name for path in photo_shards.glob("*.tar"))
    assert {name: store.requests[name] for name in tars} == dict.fromkeys(tars, 1)
    messages = [message for message in logged if message.startswith("fetched from epoch")]
    total = sum(store.sent[name] for name in tars) / 1e6
    assert messages[0] == f"fetched from epoch 0.00 to 1.00: node-000 {total:.1f} MB"
    assert messages[1] == "fetched from epoch 1.00 to 2.00: node-000 0.0 MB"


def test_the_next_window_is_fetched_before_it_is_read(store, tmp_path):
    """Windows of ten samples touch two shards; the third is fetched before any sample of it is read."""
    loader = remote_loader(store, tmp_path)
    steps = loader.steps(1)
    next(steps)
    with patience(LONGEST):
        while sum(store.sent[f"photos-00000{number}.tar"] > 0 for number in range(3)) < 3:
            sleep(0.01)
    loader.close()


def test_a_copy_that_went_bad_in_the_cache_is_fetched_again(store, photo_shards, tmp_path):
    expected = read(loader_of(photo_shards, steps=12))
    read(remote_loader(store, tmp_path))
    for path in (tmp_path / "cache" / "tars").iterdir():
        data = bytearray(path.read_bytes())
        path.write_bytes(bytes(byte ^ 0xFF for byte in data))
    steps = read(remote_loader(store, tmp_path))
    assert all(same(expected[step][0], steps[step][0]) for step in expected)


def test_a_cache_of_one_shard_is_slow_but_right(store, photo_shards, tmp_path):
    expected = read(loader_of(photo_shards, steps=12))
    largest = max(path.stat().st_size for path in photo_shards.glob("*.tar"))
    steps = read(remote_loader(store, tmp_path, size=int(largest * 1.1)))
    assert all(same(expected[step][0], steps[step][0]) for step in expected)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_nodes_divide_the_same_batches_by_the_home_of_the_shards(store, tmp_path, accumulate):
    """Four ranks on two nodes: every micro-batch of all ranks is complete, and each node prefers its own shards."""
    source = remote_loader(store, tmp_path).source
    node_of = [0, 0, 1, 1]
    by_node = [Positions(0, 12, 10, accumulate, rank, 4, node_of, source.shards) for rank in range(4)]
    flat = [Positions(0, 12, 10, accumulate, rank, 4) for rank in range(4)]
    for near, plain in zip(zip(*by_node, strict=True), zip(*flat, strict=True), strict=True):
        assert sorted(position for batch in near for position in batch) == [position for batch in plain for position in batch]
        assert [len(batch) for batch in near] == [len(batch) for batch in plain]
    at_home = [
        sum(int((source.shards(np.array(batch)) % 2 == node_of[rank]).sum()) for rank in range(4) for batch in of[rank])
        for of in (by_node, flat)
    ]
    assert at_home[0] > 1.2 * at_home[1]
