"""The lines with which a run's log begins: numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sr_dist.data.format import Manifest, ShardEntry, Shards
from sr_dist.data.loader import Stream
from sr_dist.data.remote.cache import Cache
from sr_dist.data.remote.sources import RemoteShards
from sr_dist.data.startup_report import outlook
from sr_dist.recipe.sections import Data


def shards(count: int, samples: int, size: int, remote: Cache | None = None) -> Shards:
    entries = tuple(ShardEntry(name=f"a-{i}.tar", bytes=size, samples=samples, sha256=f"{i:064x}") for i in range(count))
    manifest = Manifest(format=1, samples=count * samples, min_side=64, order={"seed": 0}, shards=entries)
    return RemoteShards(Path(), manifest, tars="https://h/a", cache=remote) if remote else Shards(Path(), manifest)


def lines(*parts: Shards, weights=(1,), **data) -> list[str]:
    names = [f"set{number}" for number in range(len(parts))]
    settings = Data(**{"train": dict(zip(names, weights, strict=True)), "crop": 16, "batch": 50, "workers": 2, **data})
    stream = Stream(
        parts, settings, seed=0, scale=2, accumulate=1, steps=60, channels=3, degrade=lambda hr, seeds: hr,
        device=torch.device("cpu"),
    )  # fmt: skip
    return list(outlook(stream, settings.sources))


def test_one_data_set():
    """60 steps of 50 are 3,000 images; 4 MB of 1,000 samples are 4 KB each."""
    assert lines(shards(4, 250, 1_000_000)) == [
        "data: 1,000 samples in 4 shards; 60 steps of 50 are 3.0 epochs",
        "data: 0.20 MB to read per step, 4.0 MB per epoch; 100 images/s need 0.4 MB/s",
    ]


def test_a_mix_says_the_epochs_of_each():
    """2,000 of 3,000 images from 500 samples, 1,000 from 250; three quarters of an image are 4 KB, ..."""
    found = lines(shards(2, 250, 1_000_000), shards(1, 250, 250_000), weights=(2, 1))
    assert found[0] == "data: 500 samples in 2 shards of 'set0', 2 of 3 images; 60 steps of 50 are 4.0 epochs"
    assert found[1] == "data: 250 samples in 1 shards of 'set1', 1 of 3 images; 60 steps of 50 are 4.0 epochs"
    assert found[2] == "data: 0.15 MB to read per step, 2.2 MB per epoch; 100 images/s need 0.3 MB/s"  # 3 KB per image


@pytest.mark.parametrize(("count", "warned"), [(2, False), (1, True)])
def test_fewer_shards_than_loading_processes_are_warned_about(count, warned):
    assert (
        any(line.startswith(f"warning: {count} shards for 2 loading processes") for line in lines(shards(count, 9, 9))) == warned
    )


def test_a_cache_too_small_for_what_is_mixed_is_warned_about():
    small, large = Cache(Path("/c"), 3_000_000), Cache(Path("/c"), 30_000_000)
    assert lines(shards(9, 100, 1_000_000, small), window=200)[-1].startswith("warning: data.cache_gb: 0.003 holds")
    last = lines(shards(9, 100, 1_000_000, large), window=200)[-1]
    assert last == "data: shards are fetched to '/c', up to 0.03 GB, on 1 node(s)"


def test_what_will_be_replaced_is_said():
    found = lines(shards(3, 9, 9), on_corrupt="substitute", workers=0)
    assert len([line for line in found if line.startswith("warning: the shard 'a-") and "will be replaced" in line]) == 3
