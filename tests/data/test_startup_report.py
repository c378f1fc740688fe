"""The first lines of a run's log, with numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sr_dist.core import launch_env
from sr_dist.data.format import Manifest, ShardEntry, Shards, open_shards
from sr_dist.data.loader import Loader, LoaderConfig
from sr_dist.data.remote.cache import Cache
from sr_dist.data.remote.sources import RemoteShards
from sr_dist.data.startup_report import startup_lines, validation_lines
from sr_dist.recipe.sections import Data


@pytest.fixture(autouse=True)
def cores(monkeypatch):
    """Of the machine; a test may change the number."""
    numbers = list(range(4))
    monkeypatch.setattr(launch_env.os, "sched_getaffinity", lambda process: set(numbers))
    return numbers


def shards(count: int, samples: int, size: int, remote: Cache | None = None) -> Shards:
    entries = tuple(ShardEntry(name=f"a-{i}.tar", bytes=size, samples=samples, sha256=f"{i:064x}") for i in range(count))
    manifest = Manifest(format=1, samples=count * samples, min_side=64, order={"seed": 0}, shards=entries)
    return RemoteShards(Path(), manifest, tars="https://h/a", cache=remote) if remote else Shards(Path(), manifest)


def lines(*data_sets: Shards, weights=(1,), **data) -> list[str]:
    names = [f"set{number}" for number in range(len(data_sets))]
    settings = Data(**{"train": dict(zip(names, weights, strict=True)), "crop": 16, "batch": 50, "workers": 2, **data})
    config = LoaderConfig(settings, seed=0, scale=2, accumulate=1, steps=60, channels=3)
    return list(startup_lines(Loader(data_sets, config, lambda hr, seeds: hr, torch.device("cpu"))))


def test_one_data_set():
    """60 steps of 50 are 3,000 images; 4 MB of 1,000 samples are 4 KB each."""
    assert lines(shards(4, 250, 1_000_000)) == [
        "data: 1,000 samples in 4 shards; 60 steps of 50 are 3.0 epochs",
        "data: 0.20 MB to read per step, 4.0 MB per epoch; 100 images/s need 0.4 MB/s",
    ]


def test_a_small_part_of_an_epoch_is_not_nothing():
    """60 steps of 50 are 3,000 images of 1,000,000."""
    assert lines(shards(4, 250_000, 1_000_000))[0].endswith("60 steps of 50 are 0.003 epochs")


def test_a_mix_reports_the_epochs_of_each_data_set():
    """2,000 of 3,000 images from 500 samples, 1,000 from 250; three quarters of an image are 4 KB, ..."""
    mixed = lines(shards(2, 250, 1_000_000), shards(1, 250, 250_000), weights=(2, 1))
    assert mixed[0] == "data: 500 samples in 2 shards of 'set0', 2 of 3 images; 60 steps of 50 are 4.0 epochs"
    assert mixed[1] == "data: 250 samples in 1 shard of 'set1', 1 of 3 images; 60 steps of 50 are 4.0 epochs"
    assert mixed[2] == "data: 0.15 MB to read per step, 2.2 MB per epoch; 100 images/s need 0.3 MB/s"  # 3 KB per image


@pytest.mark.parametrize(("count", "words", "warned"), [(2, "2 shards", False), (1, "1 shard", True)])
def test_fewer_shards_than_workers_cause_a_warning(count, words, warned):
    assert any(line.startswith(f"warning: {words} for 2 workers: ") for line in lines(shards(count, 9, 9))) == warned


def test_a_cache_that_is_too_small_for_the_window_causes_a_warning():
    small, large = Cache(Path("/c"), 3_000_000), Cache(Path("/c"), 30_000_000)
    assert lines(shards(9, 100, 1_000_000, small), window=200)[-1].startswith("warning: data.cache_gb: 0.003 holds")
    last = lines(shards(9, 100, 1_000_000, large), window=200)[-1]
    assert last == "data: shards are fetched to '/c', up to 0.03 GB, on 1 node"


def test_shards_whose_samples_will_be_replaced_are_listed():
    report = lines(shards(3, 9, 9), on_corrupt="substitute", workers=0)
    assert len([line for line in report if line.startswith("warning: the shard 'a-") and "will be replaced" in line]) == 3


def test_more_workers_than_cores_cause_one_warning_of_ours(cores, photo_shards, recwarn):
    warning = "warning: data.workers: 5 workers on 4 cores; fewer may be faster"
    assert lines(shards(9, 9, 9), workers=5)[-1] == warning
    assert not any("cores" in line for line in lines(shards(9, 9, 9), workers=4))
    cores[:] = [0]
    assert "2 workers on 1 core; " in lines(shards(9, 9, 9), workers=2)[-1]
    settings = Data(train=str(photo_shards), crop=16, batch=4, workers=2)
    config = LoaderConfig(settings, seed=0, scale=2, accumulate=1, steps=1, channels=3)
    loader = Loader([open_shards(str(photo_shards))], config, lambda hr, seeds: hr, torch.device("cpu"))
    assert len(list(loader.steps(1))) == 1
    loader.close()
    assert not [warning for warning in recwarn if "worker" in str(warning.message)]


def test_macos_has_no_affinity_and_counts_all_cores(monkeypatch):
    monkeypatch.delattr(launch_env.os, "sched_getaffinity")
    monkeypatch.setattr(launch_env.os, "cpu_count", lambda: 6)
    assert lines(shards(9, 9, 9), workers=7)[-1] == "warning: data.workers: 7 workers on 6 cores; fewer may be faster"


def test_the_validation_images_are_counted_and_few_of_them_cause_a_warning():
    data = {"train": "x", "crop": 16, "batch": 4}
    assert list(validation_lines(Data(**data, validation="y"), {"": 10})) == ["validation: 10 images, 'y'"]
    sets = Data(**data, validation={"set5": "y", "set14": "z"})
    assert list(validation_lines(sets, {"set5": 10, "set14": 14})) == [
        "validation of set5: 10 images, 'y'", "validation of set14: 14 images, 'z'",
    ]  # fmt: skip
    few = list(validation_lines(Data(**data, split=[0.9, 0.1]), {"": 1}))
    assert few[0] == "validation: 1 image, part 2 of data.train, split [0.9, 0.1]"
    assert few[1].startswith("warning: validation has fewer than 10 images")
