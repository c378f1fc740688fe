"""Opening many shards: every file is opened once, small indexes are checked together, and a slow disk is asked many at once."""

from __future__ import annotations

import importlib.util
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from sr_dist.core import files
from sr_dist.data import format as shard_format
from sr_dist.data import shard_checks
from sr_dist.data.format import ShardError, Shards, index_bytes, open_shards

ROOT = Path(__file__).resolve().parents[2]
SHARDS, SAMPLES = 600, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The shards of the benchmark, in small."""
    spec = importlib.util.spec_from_file_location("opening", ROOT / "benchmarks" / "opening.py")
    assert spec and spec.loader
    opening = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(opening)
    result = tmp_path_factory.mktemp("many") / "shards"
    opening.make_shards(result, SHARDS, SAMPLES)
    return result


@pytest.fixture
def shards(folder) -> Shards:
    return open_shards(str(folder))


def test_a_file_is_opened_once_and_small_indexes_are_checked_together(shards, monkeypatch):
    opened: list[Path] = []
    sizes: list[str] = []
    rows: list[int] = []

    def counted(path: Path):
        opened.append(path)
        return real_open(path)

    def counted_cases(columns, tar_bytes):
        rows.append(len(columns["width"]))
        return real_cases(columns, tar_bytes)

    def counted_stat(path, *arguments, **options):
        sizes.append(str(path))
        return real_stat(path, *arguments, **options)

    real_open, real_cases, real_stat = shard_format.open_regular, shard_format.row_cases, os.stat
    monkeypatch.setattr(shard_format, "open_regular", counted)
    monkeypatch.setattr(shard_format, "row_cases", counted_cases)
    shards.check_indexes()
    monkeypatch.setattr(os, "stat", counted_stat)
    shards.check_sizes()
    monkeypatch.undo()
    assert sorted(path.name for path in opened) == [f"made-{number:06d}.idx" for number in range(SHARDS)]
    assert sorted(rows) == [88 * SAMPLES, 256 * SAMPLES, 256 * SAMPLES]  # threads, if the machine is busy, have no order
    assert sorted(path for path in sizes if path.endswith(".tar")) == sorted(map(str, shards.paths()))


def test_a_disk_that_answers_slowly_is_asked_many_at_once(shards, monkeypatch):
    lock, waiting, most = threading.Lock(), 0, 0

    def slow(path: Path):
        nonlocal waiting, most
        with lock:
            waiting += 1
            most = max(most, waiting)
        time.sleep(0.002)
        with lock:
            waiting -= 1
        return real_open(path)

    real_open = shard_format.open_regular
    monkeypatch.setattr(shard_format, "open_regular", slow)
    monkeypatch.setattr(shard_checks, "SHARDS_AT_ONCE", 20)
    shards.check_indexes()
    assert most > 4


def test_a_process_parses_a_manifest_once_until_it_changes(folder, tmp_path, monkeypatch):
    """One that was written just now is parsed each time: its next version could have the same times and size."""
    path = tmp_path / "manifest.json"
    path.write_bytes((folder / "manifest.json").read_bytes())
    assert shard_format.read_manifest(tmp_path) is not shard_format.read_manifest(tmp_path)
    monkeypatch.setattr(files, "SETTLED", -1.0)
    first = shard_format.read_manifest(tmp_path)
    assert shard_format.read_manifest(tmp_path) is first
    path.write_bytes(path.read_bytes().replace(b"made-000007", b"made-990007") + b" ")
    changed = shard_format.read_manifest(tmp_path)
    assert [entry.name for entry in changed.shards][7] == "made-990007.tar"
    assert changed.digest != first.digest


CHANGES = {
    "class": (1500, "its class is 1500, but the manifest names 1000"),
    "hr_offset": (4_000_000_000, "its hr image, {bytes} bytes at 4000000000, is not inside the tar"),
    "width": (7, "it is 7 x 32, but the manifest's min_side is 32"),
    "mode": (9, "its mode is 9; the last is 4"),
}


@pytest.mark.parametrize("column", CHANGES)
def test_the_wrong_row_of_one_among_many_shards_is_named(folder, shards, tmp_path, column):
    """The same sentence as where the shard is opened alone; later shards are not named."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        os.link(path, copy / path.name)
    for number in (300, 500):
        index = shards.index(number)
        names = [name for name, _ in shard_format.index_columns(index["key"].dtype.itemsize, 1)]
        rows = [{name: _plain(index[name][each]) for name in names} for each in range(SAMPLES)]
        rows[2][column] = CHANGES[column][0]
        path = copy / f"made-{number:06d}.idx"
        path.unlink()
        path.write_bytes(index_bytes(rows, 1))
    damaged = open_shards(str(copy))
    with pytest.raises(ShardError) as alone:
        damaged.index(300)
    with pytest.raises(ShardError) as together:
        damaged.check_indexes()
    expected = CHANGES[column][1].format(bytes=shards.index(300)["hr_bytes"][2])
    assert str(together.value) == str(alone.value)
    assert f"made-000300.idx', sample 2: {expected}" in str(together.value)


def _plain(value: np.generic) -> object:
    return value.tobytes() if value.dtype.kind == "V" else value.item()


def test_groups_hold_every_shard_once_and_a_large_one_alone():
    assert shard_checks.groups(600, 1800) == [range(256), range(256, 512), range(512, 600)]
    assert shard_checks.groups(3, 30_000) == [range(1), range(1, 2), range(2, 3)]
    assert shard_checks.groups(10, 10 * 1024) == [range(4), range(4, 8), range(8, 10)]
