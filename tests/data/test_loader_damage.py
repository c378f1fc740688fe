"""Damaged and missing shards, substitutes, and workers that are blocked or orphaned."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from time import sleep

import pytest
import torch
from loaders import loader_of, logged_messages, patience, read
from processes import LONGEST, environment

from sr_dist.core import ranks
from sr_dist.data import reader as reader_module
from sr_dist.data.format import ShardError, open_shards
from sr_dist.data.order import Order
from sr_dist.data.reader import ShardReader


@pytest.mark.parametrize("workers", [0, 1])
def test_a_flipped_byte_ends_in_an_error_that_names_shard_and_key(photo_shards, tmp_path, workers):
    folder = shutil.copytree(photo_shards, tmp_path / "damaged")
    shards = open_shards(str(folder))
    index = shards.index(1)
    middle = int(index["hr_offset"][4]) + int(index["hr_bytes"][4]) // 2
    data = bytearray(shards.paths()[1].read_bytes())
    data[middle] ^= 0x10
    shards.paths()[1].write_bytes(data)
    with patience(LONGEST), pytest.raises(ShardError) as caught:
        read(loader_of(folder, steps=8, workers=workers))
    message = str(caught.value)
    assert "photos-000001.tar" in message
    assert f"'{index['key'][4].decode()}'" in message
    assert "\n" not in message


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_vanishes_ends_in_an_error_that_names_it(photo_shards, tmp_path, workers):
    folder = shutil.copytree(photo_shards, tmp_path / "damaged")
    loader = loader_of(folder, steps=8, workers=workers)
    (folder / "photos-000002.tar").unlink()
    with (
        patience(LONGEST),
        pytest.raises(ShardError, match=r"photos-000002\.tar': cannot be opened: .*'python -m shards\.verify "),
    ):
        read(loader)


def damaged_copy(photo_shards, folder: Path, flipped: dict[int, list[int]]) -> Path:
    """Shards with a flipped byte in the images of these rows, by shard."""
    shutil.copytree(photo_shards, folder)
    shards = open_shards(str(folder))
    for shard, rows in flipped.items():
        data = bytearray(shards.paths()[shard].read_bytes())
        for row in rows:
            data[int(shards.index(shard)["hr_offset"][row]) + 40] ^= 0x10
        shards.paths()[shard].write_bytes(data)
    return folder


def test_a_substitute_is_the_next_readable_sample_and_is_recorded(photo_shards, tmp_path):
    """Two images are damaged, which follow each other in the order; nothing else changes."""
    order, shards = Order([8, 8, 8], 0, window=10), open_shards(str(photo_shards))
    places = [order.locate(order.at(position)[1]) for position in range(24)]
    keys = [shards.index(shard)["key"][row].decode() for shard, row in places]
    broken: dict[int, list[int]] = {}
    for position in (5, 6):
        shard, row = order.locate(order.at(position)[1])
        broken.setdefault(shard, []).append(row)
    folder = damaged_copy(photo_shards, tmp_path / "damaged", broken)
    loader = loader_of(folder, on_corrupt="substitute", run_folder=tmp_path / "run")
    with logged_messages() as messages:
        steps = read(loader)
        assert loader.log_columns() == {"data/substituted": 2}
        assert loader.log_columns() == {"data/substituted": 2}
    assert [key for (batch,) in steps.values() for key in batch.keys] == [*keys[:5], keys[7], keys[7], *keys[7:]]
    rows = [json.loads(line) for line in (tmp_path / "run" / "substituted" / "rank-000.jsonl").read_text().splitlines()]
    assert [(row["step"], row["wanted"], row["taken"]) for row in rows] == [(2, keys[5], keys[7]), (2, keys[6], keys[7])]
    assert all("does not match its checksum" in row["why"] and "python -m shards.verify" in row["why"] for row in rows)
    assert messages == ["warning: 2 unreadable samples have been replaced so far; they are listed in substituted/"]  # once
    (second,) = steps[2]
    assert not torch.equal(second.hr[1], second.hr[2])  # the crop depends on the position, not on the image


@pytest.mark.parametrize("damage", ["missing", "truncated", "swapped"])
def test_a_damaged_shard_is_replaced_by_the_same_samples_everywhere(photo_shards, tmp_path, monkeypatch, damage):
    """The number of samples stays the same, and 2 workers or 3 ranks read the same samples as one process."""
    folder = shutil.copytree(photo_shards, tmp_path / "damaged")
    first, second = folder / "photos-000001.tar", folder / "photos-000002.tar"
    if damage == "missing":
        first.unlink()
    elif damage == "truncated":
        first.write_bytes(first.read_bytes()[: first.stat().st_size // 2])
    else:
        bytes_of_first = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(bytes_of_first)
    whole = {step: batch.keys for step, (batch,) in read(loader_of(folder, batch=6, on_corrupt="substitute")).items()}
    assert [len(keys) for keys in whole.values()] == [6] * 6
    with patience(LONGEST):
        by_workers = read(loader_of(folder, batch=6, workers=2, on_corrupt="substitute"))
    assert {step: batch.keys for step, (batch,) in by_workers.items()} == whole
    pieces = []
    for rank in range(3):
        monkeypatch.setattr(ranks, "size", lambda: 3)
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        pieces.append(read(loader_of(folder, batch=6, on_corrupt="substitute")))
    assert {step: sum((piece[step][0].keys for piece in pieces), ()) for step in whole} == whole


@pytest.mark.parametrize("substitute", [False, True])
def test_a_sector_that_cannot_be_read_is_damage_like_any_other(photo_shards, monkeypatch, substitute):
    preadv, offsets = os.preadv, set()

    def broken(file: int, buffers, offset: int) -> int:
        offsets.add(offset)
        if offset == min(offsets):
            raise OSError(errno.EIO, "Input/output error")
        return preadv(file, buffers, offset)

    monkeypatch.setattr(os, "preadv", broken)
    if substitute:
        assert all(len(batch.keys) == 4 for (batch,) in read(loader_of(photo_shards, on_corrupt="substitute")).values())
    else:
        with pytest.raises(ShardError, match=r"the hr image of '.*' cannot be read: Input/output error; .*shards\.verify"):
            read(loader_of(photo_shards))


def test_opening_a_missing_shard_is_tried_again_later(photo_shards, tmp_path, monkeypatch):
    folder = shutil.copytree(photo_shards, tmp_path / "away")
    tar, clock = folder / "photos-000000.tar", [0.0]
    monkeypatch.setattr(reader_module, "monotonic", lambda: clock[0])
    reader = ShardReader(open_shards(str(folder)))
    tar.rename(tmp_path / "elsewhere.tar")
    for clock[0] in (0.0, 500.0):
        with pytest.raises(ShardError, match="cannot be opened"):
            reader.read(0, 0, "hr")
        if not clock[0]:
            (tmp_path / "elsewhere.tar").rename(tar)  # back, but the failure is recent
    clock[0] = 601.0
    assert reader.read(0, 0, "hr")


def test_a_truncated_line_in_the_records_does_not_stop_a_run(photo_shards, tmp_path):
    (tmp_path / "substituted").mkdir()
    rows = [
        '{"step": 2, "wanted": "a", "taken": "b", "why": "c"}',
        '{"step": 9, "wanted": "a", "taken": "b", "why": "c"}',
        '{"st',
    ]
    (tmp_path / "substituted" / "rank-001.jsonl").write_text("\n".join(rows))
    loader = loader_of(photo_shards, on_corrupt="substitute", run_folder=tmp_path)
    read(loader, first=3)
    assert loader.log_columns() == {"data/substituted": 1}  # rows of later steps are written again


SILENT = """
import sys, threading, time, torch
from pathlib import Path
from sr_dist.data.remote.cache import Cache
from sr_dist.data.remote.sources import open_shards
from sr_dist.data.loader import Loader, LoaderConfig
from sr_dist.recipe.sections import Data
source, cache = sys.argv[1:]
shards = open_shards(source, "data.train", Cache(Path(cache), 10**9))
config = LoaderConfig(Data(train=source, crop=16, batch=4, workers=2), seed=0, scale=2, accumulate=1, steps=9, channels=3)
loader = Loader([shards], config, lambda hr, seeds: hr, torch.device("cpu"))
threading.Thread(target=lambda: next(loader.crop_steps(1)), daemon=True).start()
while not getattr(loader._batches, "_workers", []):
    time.sleep(0.01)
workers = loader._batches._workers
time.sleep(1)
loader.close()
print(sum(worker.is_alive() for worker in workers))
"""


def test_a_worker_that_waits_for_a_silent_source_does_not_block_the_run(photo_shards, tmp_path):
    """The manifest and the indexes arrive, the tars never do."""
    source = f"pipe:case {{}} in *.tar) exec sleep 20;; *) cat {photo_shards}/{{}};; esac"
    words = [sys.executable, "-c", SILENT, source, str(tmp_path / "cache")]
    with open(tmp_path / "output", "w+") as output, patience(LONGEST):
        child = subprocess.run(words, stdout=output, check=False, env=environment())
        output.seek(0)
        assert (child.returncode, output.read()) == (0, "0\n")


ORPHANS = """
import os, sys, time, torch
from sr_dist.data.format import open_shards
from sr_dist.data.loader import Loader, LoaderConfig
from sr_dist.recipe.sections import Data
data = Data(train=sys.argv[1], crop="none", batch=256, workers=2)
config = LoaderConfig(data, seed=0, scale=2, accumulate=1, steps=9, channels=3)
loader = Loader([open_shards(sys.argv[1])], config, lambda hr, seeds: hr, torch.device("cpu"))
next(loader.crop_steps(1))
print(*(worker.pid for worker in loader._batches._workers), flush=True)
time.sleep(2)
os._exit(1)
"""


def test_workers_end_with_a_rank_that_exits_at_once(photo_shards):
    """The watchdog ends a rank in this way. The workers' pipes to it are full."""
    import psutil

    words = [sys.executable, "-c", ORPHANS, str(photo_shards)]
    with patience(LONGEST):  # a worker that survives keeps the pipe open
        child = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False, env=environment())
        workers = [int(pid) for pid in child.stdout.split()]
        assert (child.returncode, len(workers)) == (1, 2)
        while any(psutil.pid_exists(pid) for pid in workers):
            sleep(0.05)


def test_without_a_readable_sample_a_substitute_is_an_error(photo_shards, tmp_path):
    folder = shutil.copytree(photo_shards, tmp_path / "damaged")
    for tar in folder.glob("*.tar"):
        tar.unlink()
    with pytest.raises(ShardError, match=r"cannot be opened: .*shards\.verify"):
        read(loader_of(folder, on_corrupt="substitute"))
