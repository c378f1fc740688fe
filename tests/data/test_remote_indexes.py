"""Many indexes are fetched by few programs, from a real server with faults and by the real curl."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

import pytest
from made_shards import built
from servers import serving

from sr_dist.data.format import ShardError
from sr_dist.data.format import open_shards as open_local
from sr_dist.data.remote import download, sources
from sr_dist.data.remote.cache import Cache
from sr_dist.data.remote.sources import open_shards

SHARDS = 40


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory, make_photo, image_bytes) -> Path:
    folder = tmp_path_factory.mktemp("many")
    (folder / "images").mkdir()
    for number in range(SHARDS):
        (folder / "images" / f"{number}.png").write_bytes(image_bytes(make_photo(number, 8, 8)))
    built("folder", folder / "images", folder / "t", per_shard="1")
    return folder / "t"


@pytest.fixture
def starts(tmp_path, monkeypatch) -> Path:
    """A file with a line for each start of curl."""
    real, program, lines = shutil.which("curl"), tmp_path / "bin" / "curl", tmp_path / "starts"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho start >> "{lines}"\nexec "{real}" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(download, "sleep", lambda seconds: None)
    sources._fetched.cache_clear()
    return lines


def index_name(number: int) -> str:
    return f"t-{number:06d}.idx"


def test_many_indexes_need_few_programs(many_shards, starts, tmp_path):
    local = open_local(str(many_shards))
    with serving(many_shards) as store:
        remote = open_shards(store.url, "data.train", Cache(tmp_path / "cache", 10**9))
        for number in range(SHARDS):
            assert remote.index(number)["key"].tolist() == local.index(number)["key"].tolist()
            assert store.requests[index_name(number)] == 1
        curls = 1 + math.ceil(SHARDS / sources.IN_A_CURL)  # one for the manifest
        assert len(starts.read_text().splitlines()) == curls
        sources._fetched.cache_clear()
        (remote.folder / index_name(7)).write_bytes(b"damaged")
        open_shards(store.url, "data.train", Cache(tmp_path / "cache", 10**9))
        assert len(starts.read_text().splitlines()) == curls + 2, "the manifest and one index"
    assert sorted(path.suffix for path in remote.folder.iterdir()) == [".idx"] * SHARDS + [".json"]


@pytest.mark.parametrize("fault", ["500", "drop", "cut", "flip", "longer"])
def test_an_index_that_did_not_come_is_fetched_alone(many_shards, starts, tmp_path, fault):
    if fault == "flip":
        fault = "page"  # an index of one sample has less than the 700 bytes of a flip
    with serving(many_shards) as store:
        store.faults[index_name(11)] = [fault]
        remote = open_shards(store.url, "data.train", Cache(tmp_path / "cache", 10**9))
        assert len(remote.index(11)) == 1
        assert store.requests[index_name(11)] == 2
    assert sorted(path.suffix for path in remote.folder.iterdir()) == [".idx"] * SHARDS + [".json"]


def test_an_index_that_never_comes_is_named(many_shards, starts, tmp_path):
    with serving(many_shards) as store:
        store.faults[index_name(11)] = ["404"] * 9
        url = rf"{store.url}/t-000011\.idx"
        with pytest.raises(ShardError, match=rf"^data\.train: the index '{url}' could not be fetched: the server answers 404"):
            open_shards(store.url, "data.train", Cache(tmp_path / "cache", 10**9))
    assert not list((tmp_path / "cache").rglob("*.new"))


@pytest.mark.parametrize("name", ["two\nlines", os.fsdecode(b"not utf-8 \xff")])
def test_a_cache_whose_name_curl_cannot_read_is_filled_one_by_one(many_shards, starts, tmp_path, name):
    with serving(many_shards) as store:
        remote = open_shards(store.url, "data.train", Cache(tmp_path / name, 10**9))
        assert len(remote.index(11)) == 1
