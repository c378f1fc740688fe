from __future__ import annotations

import errno
import json
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from contextlib import closing, contextmanager
from pathlib import Path
from time import sleep

import numpy as np
import pytest
import torch
from made_shards import handmade
from PIL import Image
from processes import environment
from servers import serving

from sr_dist.core import ranks
from sr_dist.core.errors import UserError
from sr_dist.core.resize import imresize
from sr_dist.data import reader as reader_module
from sr_dist.data.crops import CropSource, Positions, Samples
from sr_dist.data.degradations import bicubic
from sr_dist.data.format import ShardError, Shards, open_shards
from sr_dist.data.loader import Stream
from sr_dist.data.order import CROP, Mix, Order, crop_place, draw
from sr_dist.data.reader import ShardReader
from sr_dist.data.remote import sources
from sr_dist.data.remote.cache import Cache
from sr_dist.data.select import Portion
from sr_dist.recipe.sections import Data

SCALE, CROP_SIZE = 2, 16


def stream(
    *folders, steps=6, accumulate=1, channels=3, seed=0, run_folder=None, position=0, done=0, **data
) -> Stream:  # fmt: skip
    """Of one data set, or of several by the weights in `train`."""
    train = dict.fromkeys(map(str, folders), 1)
    settings = Data(**{"train": train, "crop": CROP_SIZE, "batch": 4, "workers": 0, "window": 10, **data})
    degrade = bicubic.build(bicubic.Config(), SCALE)
    return Stream(
        [open_shards(str(folder)) for folder in folders], settings, seed=seed, scale=SCALE, accumulate=accumulate,
        steps=steps, channels=channels, degrade=degrade, device=torch.device("cpu"), folder=run_folder,
        position=position, done=done,
    )  # fmt: skip


def read(a_stream: Stream, first=1) -> dict[int, list]:
    try:
        return dict(a_stream.steps(first))
    finally:
        a_stream.close()


def same(left, right) -> bool:
    pairs = (left.lr, right.lr), (left.hr, right.hr), (left.label, right.label)
    return left.keys == right.keys and all(torch.equal(*pair) for pair in pairs)


@contextmanager
def patience(seconds: int):
    """A test that hangs fails instead."""

    def tired(*_):
        raise AssertionError(f"it still waits after {seconds} s")

    before = signal.signal(signal.SIGALRM, tired)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def levels(image: torch.Tensor) -> np.ndarray:
    """(C, H, W) in [0, 1] -> (H, W, C) in [0, 255]."""
    return (image * 255).permute(1, 2, 0).numpy()


def originals(photos: Path) -> dict[str, np.ndarray]:
    """Every photograph as Pillow decodes it, by its key."""
    return {path.relative_to(photos).with_suffix("").as_posix(): np.array(Image.open(path)) for path in photos.rglob("*.*")}


# -------------------------------------------------------------------------------------------------------------- batches


def test_batches_have_the_promised_shapes_and_values(photo_shards):
    steps = read(stream(photo_shards))
    assert list(steps) == [1, 2, 3, 4, 5, 6]
    classes = open_shards(str(photo_shards)).manifest.classes
    for (batch,) in steps.values():
        assert batch.hr.shape == (4, 3, 16, 16)
        assert batch.lr.shape == (4, 3, 8, 8)
        assert batch.hr.dtype == batch.lr.dtype == torch.float32
        assert min(batch.hr.min(), batch.lr.min()) >= 0
        assert max(batch.hr.max(), batch.lr.max()) <= 1
        assert batch.hr.std() > 0.05
        assert [classes[label] for label in batch.label] == [key.split("/")[0] for key in batch.keys]


def test_lr_is_the_matlab_bicubic_of_hr(photo_shards):
    for (batch,) in read(stream(photo_shards)).values():
        assert torch.equal(batch.lr, imresize(batch.hr, 1 / SCALE, to_8_bit=True))
        for hr, lr in zip(batch.hr, batch.lr, strict=True):  # Pillow's differs at the borders alone
            pillow = Image.fromarray(levels(hr).round().astype(np.uint8)).resize((8, 8), Image.Resampling.BICUBIC)
            assert np.abs(np.array(pillow) - levels(lr))[2:-2, 2:-2].max() <= 1.01


def test_a_crop_is_the_window_that_the_order_says_in_one_of_eight_orientations(photo_shards, photos):
    """Against Pillow; its JPEG decoder may differ from torchvision's by a level or two."""
    images, turns = originals(photos), Counter()
    order = Order([8, 8, 8], 0, window=10)
    for step, (batch,) in read(stream(photo_shards)).items():
        for place, (hr, key) in enumerate(zip(batch.hr, batch.keys, strict=True)):
            epoch, sample = order([(step - 1) * 4 + place])[0]
            picture = images[key]
            top, left = crop_place(draw(0, epoch, sample, CROP), *picture.shape[:2], CROP_SIZE, SCALE)
            window = picture[top : top + CROP_SIZE, left : left + CROP_SIZE].astype(float)
            found = levels(hr)
            eight = [np.rot90(side, k) for side in (window, window[:, ::-1]) for k in range(4)]
            distances = [np.abs(found - turned).max() for turned in eight]
            assert min(distances) <= 3
            turns[int(np.argmin(distances))] += 1
    assert len(turns) > 4


def test_without_flips_and_turns_the_crop_is_upright(photo_shards, photos):
    images, order = originals(photos), Order([8, 8, 8], 3, window=10)
    for step, (batch,) in read(stream(photo_shards, steps=12, seed=3, flip=False, rotate=False)).items():
        for place, (hr, key) in enumerate(zip(batch.hr, batch.keys, strict=True)):
            epoch, sample = order([(step - 1) * 4 + place])[0]
            top, left = crop_place(draw(3, epoch, sample, CROP), *images[key].shape[:2], CROP_SIZE, SCALE)
            window = images[key][top : top + CROP_SIZE, left : left + CROP_SIZE].astype(float)
            assert np.abs(levels(hr) - window).max() <= 3


def test_an_epoch_holds_every_key_once_and_the_next_cuts_other_crops(photo_shards):
    steps = read(stream(photo_shards, steps=12, flip=False, rotate=False))
    batches = [batch for (batch,) in steps.values()]
    first, second = (Counter(key for batch in part for key in batch.keys) for part in (batches[:6], batches[6:]))
    assert first == second == dict.fromkeys(first, 1)
    assert len(first) == 24
    pictures = [
        {key: hr for batch in part for key, hr in zip(batch.keys, batch.hr, strict=True)} for part in (batches[:6], batches[6:])
    ]
    assert sum(torch.equal(pictures[0][key], pictures[1][key]) for key in first) < 6


def test_grey_networks_get_one_channel(photo_shards, photos):
    (batch,) = read(stream(photo_shards, steps=1, channels=1))[1]
    assert batch.hr.shape == (4, 1, 16, 16)
    assert batch.lr.shape == (4, 1, 8, 8)


# ------------------------------------------------------------------------------------- workers, ranks and resuming


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_gives_the_same_batches(photo_shards, workers):
    here = read(stream(photo_shards, accumulate=2, batch=5))
    with patience(120):
        there = read(stream(photo_shards, accumulate=2, batch=5, workers=workers))
    assert here.keys() == there.keys()
    for step in here:
        assert len(here[step]) == len(there[step]) == 2
        assert all(same(left, right) for left, right in zip(here[step], there[step], strict=True))


@pytest.mark.parametrize(("workers", "accumulate"), [(1, 1), (1, 3), (2, 3), (3, 2)])
def test_what_a_rank_has_in_hand_is_not_written_over(photo_shards, workers, accumulate):
    """Loading processes fill their slots as far ahead as they may while the rank looks at a step."""
    here = dict(stream(photo_shards, accumulate=accumulate, batch=7, steps=12).crops(1))
    with patience(120), closing(stream(photo_shards, accumulate=accumulate, batch=7, steps=12, workers=workers)) as there:
        for step, crops in there.crops(1):
            sleep(0.05)
            assert [part.facts.keys for part in crops] == [part.facts.keys for part in here[step]]
            assert all(torch.equal(part.hr, expected.hr) for part, expected in zip(crops, here[step], strict=True))


def test_too_little_shared_memory_is_said(photo_shards, monkeypatch):
    def full(size, device):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch>: No space left on device (28)")

    monkeypatch.setattr(torch.UntypedStorage, "_new_shared", full)
    with pytest.raises(
        UserError,
        match=r"data\.workers: .* from 2 loading .* need 18 MiB of shared memory on every rank .*No space left.*--shm-size",
    ):
        read(stream(photo_shards, crop=512, small="replicate", batch=4, workers=2))


@pytest.mark.parametrize(("world", "accumulate"), [(1, 3), (2, 1), (3, 2), (7, 1)])
def test_any_number_of_ranks_and_micro_batches_gives_the_same_samples(photo_shards, world, accumulate, monkeypatch):
    """A batch of 7 does not divide by 2, 3 or 6: parts differ by one, and laid side by side they are the whole batch."""
    whole = {step: batch for step, (batch,) in read(stream(photo_shards, batch=7)).items()}
    parts = []
    for rank in range(world):
        monkeypatch.setattr(ranks, "size", lambda: world)
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        parts.append(read(stream(photo_shards, batch=7, accumulate=accumulate)))
    for step, batch in whole.items():
        together = [parts[rank][step][micro] for micro in range(accumulate) for rank in range(world)]
        assert [key for part in together for key in part.keys] == list(batch.keys)
        assert torch.equal(torch.cat([part.hr for part in together]), batch.hr)
        assert torch.equal(torch.cat([part.lr for part in together]), batch.lr)
        assert torch.equal(torch.cat([part.label for part in together]), batch.label)


def test_resuming_is_starting_at_another_step(photo_shards):
    whole = read(stream(photo_shards, steps=14))
    rest = read(stream(photo_shards, steps=14), first=9)
    assert list(rest) == list(range(9, 15))
    assert all(same(rest[step][0], whole[step][0]) for step in rest)


def test_where_the_data_stand_is_known_before_the_first_step(photo_shards):
    """400 positions after 100 steps, as a run has it that took other batches before; nothing is read to say so."""
    a_stream = stream(photo_shards, steps=102, position=404, done=100)
    assert [a_stream.position_after(step) for step in (100, 101)] == [404, 408]
    found = [batch.keys for (batch,) in read(a_stream, first=101).values()]
    assert found == [batch.keys for (batch,) in read(stream(photo_shards, steps=103), first=102).values()]


def test_positions_of_a_rank_are_its_part_of_every_step():
    assert list(Positions(start=10, steps=2, batch=5, accumulate=2, rank=0, world=1)) == [
        range(10, 12), range(12, 15), range(15, 17), range(17, 20),
    ]  # fmt: skip


def test_a_source_can_be_sent_to_a_worker_at_any_time(photo_shards):
    source = stream(photo_shards).source
    before = source[range(3)]
    after = pickle.loads(pickle.dumps(source))[range(3)]
    assert torch.equal(before.hr, after.hr)
    assert before.facts.keys == after.facts.keys
    assert len(pickle.dumps(source)) < 20_000  # paths, not arrays


def test_few_files_stay_open_and_the_bytes_are_right(photo_shards, photos, monkeypatch):
    monkeypatch.setattr(Shards, "OPEN_AT_ONCE", 2)
    reader = ShardReader(open_shards(str(photo_shards)))
    by_key = {path.relative_to(photos).with_suffix("").as_posix(): path.read_bytes() for path in photos.rglob("*.*")}
    for row in range(8):
        for shard in range(3):
            assert reader.read(shard, row, "hr") == by_key[reader.key(shard, row)]
            assert reader.read(shard, row, "lr") == b""
            assert len(reader._files) <= 2


@pytest.mark.parametrize(
    ("files", "readers", "shards"), [(8, 2, 2), (1024, 2, 192), (1024, 4, 96), (10**6, 2, 256), (-1, 9, 256)]
)
def test_all_readers_of_a_process_together_leave_files_to_others(photo_shards, monkeypatch, files, readers, shards):
    monkeypatch.setattr(reader_module.resource, "getrlimit", lambda _: (files, files))
    reader = ShardReader(open_shards(str(photo_shards)), readers)
    assert reader._most == pickle.loads(pickle.dumps(reader))._most == shards
    assert files < 16 or readers * 2 * shards <= files * 3 / 4


# ------------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("workers", [0, 1])
def test_a_flipped_byte_ends_in_an_error_that_names_shard_and_key(photo_shards, tmp_path, workers):
    folder = shutil.copytree(photo_shards, tmp_path / "damaged")
    shards = open_shards(str(folder))
    index = shards.index(1)
    place = int(index["hr_offset"][4]) + int(index["hr_bytes"][4]) // 2
    data = bytearray(shards.paths()[1].read_bytes())
    data[place] ^= 0x10
    shards.paths()[1].write_bytes(data)
    with patience(120), pytest.raises(ShardError) as caught:
        read(stream(folder, steps=8, workers=workers))
    message = str(caught.value)
    assert "photos-000001.tar" in message
    assert f"'{index['key'][4].decode()}'" in message
    assert "\n" not in message


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_vanishes_ends_in_an_error_that_names_it(photo_shards, tmp_path, workers):
    folder = shutil.copytree(photo_shards, tmp_path / "damaged")
    a_stream = stream(folder, steps=8, workers=workers)
    (folder / "photos-000002.tar").unlink()
    with patience(120), pytest.raises(ShardError, match=r"photos-000002\.tar': cannot be opened: .*'python -m shards\.verify "):
        read(a_stream)


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


def test_a_substitute_is_the_next_of_the_order_that_can_be_read_and_is_written_down(photo_shards, tmp_path, caplog, monkeypatch):
    """Two images are damaged, one of them right behind the other in the order; nothing else changes."""
    caplog.set_level("INFO", logger="sr_dist")
    monkeypatch.setattr(logging.getLogger("sr_dist"), "propagate", True)
    order, shards = Order([8, 8, 8], 0, window=10), open_shards(str(photo_shards))
    keys = [shards.index(order.locate(sample)[0])["key"][order.locate(sample)[1]].decode() for _, sample in order(range(24))]
    broken: dict[int, list[int]] = {}
    for place in (5, 6):
        shard, row = order.locate(order([place])[0][1])
        broken.setdefault(shard, []).append(row)
    folder = damaged_copy(photo_shards, tmp_path / "damaged", broken)
    a_stream = stream(folder, on_corrupt="substitute", run_folder=tmp_path / "run")
    steps = read(a_stream)
    found = [key for (batch,) in steps.values() for key in batch.keys]
    assert found == [*keys[:5], keys[7], keys[7], *keys[7:]]
    rows = [json.loads(line) for line in (tmp_path / "run" / "substituted" / "rank-000.jsonl").read_text().splitlines()]
    assert [(row["step"], row["wanted"], row["taken"]) for row in rows] == [(2, keys[5], keys[7]), (2, keys[6], keys[7])]
    assert all("does not match its checksum" in row["why"] and "python -m shards.verify" in row["why"] for row in rows)
    assert a_stream.counted() == {"data/substituted": 2}
    assert a_stream.counted() == {"data/substituted": 2}
    said = [record.message for record in caplog.records]
    assert said == ["warning: 2 samples could not be read so far, others came in their place: see substituted/"]  # once
    (second,) = steps[2]
    assert not torch.equal(second.hr[1], second.hr[2])  # the crops are those of the places, not of the image


@pytest.mark.parametrize("damage", ["missing", "truncated", "swapped"])
def test_a_damaged_shard_is_replaced_by_the_same_samples_everywhere(photo_shards, tmp_path, monkeypatch, damage):
    """Never fewer samples: with 2 workers and on 3 ranks as in one process."""
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
    whole = {step: batch.keys for step, (batch,) in read(stream(folder, batch=6, on_corrupt="substitute")).items()}
    assert [len(keys) for keys in whole.values()] == [6] * 6
    with patience(120):
        there = read(stream(folder, batch=6, workers=2, on_corrupt="substitute"))
    assert {step: batch.keys for step, (batch,) in there.items()} == whole
    parts = []
    for rank in range(3):
        monkeypatch.setattr(ranks, "size", lambda: 3)
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        parts.append(read(stream(folder, batch=6, on_corrupt="substitute")))
    assert {step: sum((part[step][0].keys for part in parts), ()) for step in whole} == whole


@pytest.mark.parametrize("substitute", [False, True])
def test_a_sector_that_cannot_be_read_is_damage_like_any_other(photo_shards, monkeypatch, substitute):
    real, places = os.preadv, set()

    def broken(file: int, buffers, place: int) -> int:
        places.add(place)
        if place == min(places):
            raise OSError(errno.EIO, "Input/output error")
        return real(file, buffers, place)

    monkeypatch.setattr(os, "preadv", broken)
    if substitute:
        assert all(len(batch.keys) == 4 for (batch,) in read(stream(photo_shards, on_corrupt="substitute")).values())
    else:
        with pytest.raises(ShardError, match=r"the hr image of '.*' cannot be read: Input/output error; .*shards\.verify"):
            read(stream(photo_shards))


def test_a_shard_that_was_away_for_a_while_is_asked_for_again(photo_shards, tmp_path, monkeypatch):
    folder = shutil.copytree(photo_shards, tmp_path / "away")
    tar, clock = folder / "photos-000000.tar", [0.0]
    monkeypatch.setattr(reader_module, "monotonic", lambda: clock[0])
    a_reader = ShardReader(open_shards(str(folder)))
    tar.rename(tmp_path / "elsewhere.tar")
    for clock[0] in (0.0, 500.0):
        with pytest.raises(ShardError, match="cannot be opened"):
            a_reader.read(0, 0, "hr")
        if not clock[0]:
            (tmp_path / "elsewhere.tar").rename(tar)  # back, but it was said just now
    clock[0] = 601.0
    assert a_reader.read(0, 0, "hr")


def test_a_torn_line_in_the_books_does_not_stop_a_run(photo_shards, tmp_path):
    (tmp_path / "substituted").mkdir()
    rows = [
        '{"step": 2, "wanted": "a", "taken": "b", "why": "c"}',
        '{"step": 9, "wanted": "a", "taken": "b", "why": "c"}',
        '{"st',
    ]
    (tmp_path / "substituted" / "rank-001.jsonl").write_text("\n".join(rows))
    a_stream = stream(photo_shards, on_corrupt="substitute", run_folder=tmp_path)
    read(a_stream, first=3)
    assert a_stream.counted() == {"data/substituted": 1}  # what is of steps to come is written anew


SILENT = """
import sys, threading, time, torch
from pathlib import Path
from sr_dist.data.remote.cache import Cache
from sr_dist.data.remote.sources import open_shards
from sr_dist.data.loader import Stream
from sr_dist.recipe.sections import Data
source, cache = sys.argv[1:]
shards = open_shards(source, "data.train", Cache(Path(cache), 10**9))
stream = Stream([shards], Data(train=source, crop=16, batch=4, workers=2), seed=0, scale=2, accumulate=1, steps=9, channels=3,
                degrade=lambda hr, seeds: hr, device=torch.device("cpu"))
threading.Thread(target=lambda: next(stream.crops(1)), daemon=True).start()
while not getattr(stream._arriving, "_workers", []):
    time.sleep(0.01)
workers = stream._arriving._workers
time.sleep(1)
stream.close()
print(sum(worker.is_alive() for worker in workers))
"""


def test_a_worker_that_waits_for_a_silent_source_does_not_keep_the_run(photo_shards, tmp_path):
    """Manifest and indexes come, tars never do."""
    source = f"pipe:case {{}} in *.tar) exec sleep 20;; *) cat {photo_shards}/{{}};; esac"
    words = [sys.executable, "-c", SILENT, source, str(tmp_path / "cache")]
    with open(tmp_path / "said", "w+") as said, patience(60):
        child = subprocess.run(words, stdout=said, check=False, env=environment())
        said.seek(0)
        assert (child.returncode, said.read()) == (0, "0\n")


ORPHANS = """
import os, sys, time, torch
from sr_dist.data.format import open_shards
from sr_dist.data.loader import Stream
from sr_dist.recipe.sections import Data
data = Data(train=sys.argv[1], crop="none", batch=256, workers=2)
stream = Stream([open_shards(sys.argv[1])], data, seed=0, scale=2, accumulate=1, steps=9, channels=3,
                degrade=lambda hr, seeds: hr, device=torch.device("cpu"))
next(stream.crops(1))
print(*(worker.pid for worker in stream._arriving._workers), flush=True)
time.sleep(2)
os._exit(1)
"""


def test_loading_processes_end_with_a_rank_that_ends_at_once(photo_shards):
    """As it does when nothing moves any more; their results fill the way to it."""
    import psutil

    words = [sys.executable, "-c", ORPHANS, str(photo_shards)]
    with patience(90):  # whoever lives on keeps the pipe open
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
        read(stream(folder, on_corrupt="substitute"))


# ------------------------------------------------------------------------------------------------- several data sets


def test_two_data_sets_come_by_their_weights_each_in_epochs_of_its_own(photo_shards, tmp_path, image_bytes, picture):
    """Photographs twice as often as five others: after 36 positions 24 of the ones and 12 of the others."""
    others = handmade(tmp_path, [image_bytes(picture(number, 24, 24)) for number in range(5)])
    weights = {str(photo_shards): 2, str(others): 1}
    a_stream = stream(photo_shards, others, train=weights, steps=9)
    assert a_stream.samples == 29
    keys = [key for (batch,) in read(a_stream).values() for key in batch.keys]
    assert [key.startswith("sample") for key in keys] == [False, True, False] * 12
    assert set(Counter(key for key in keys if not key.startswith("sample")).values()) == {1}
    assert sorted(Counter(key for key in keys if key.startswith("sample")).values()) == [2, 2, 2, 3, 3]
    rest = read(stream(photo_shards, others, train=weights, steps=9), first=6)
    assert [key for (batch,) in rest.values() for key in batch.keys] == keys[20:]


# ------------------------------------------------------------------------------------------------------ fetched shards


@pytest.fixture
def store(photo_shards):
    sources._fetched.cache_clear()
    with serving(photo_shards) as server:
        yield server
        for thread in threading.enumerate():
            if thread.name == "ahead":
                thread.join(30)


def fetched(store, tmp_path, *, run_folder=None, size=10**9, **data) -> Stream:
    settings = Data(**{"train": store.url, "crop": CROP_SIZE, "batch": 4, "workers": 0, "window": 10, **data})
    shards = sources.open_shards(store.url, "data.train", Cache(tmp_path / "cache", size))
    degrade = bicubic.build(bicubic.Config(), SCALE)
    return Stream(
        [shards], settings, seed=0, scale=SCALE, accumulate=1, steps=12, channels=3,
        degrade=degrade, device=torch.device("cpu"), folder=run_folder,
    )  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2])
def test_fetched_shards_give_the_same_batches_and_are_fetched_once(store, photo_shards, tmp_path, workers, caplog, monkeypatch):
    caplog.set_level("INFO", logger="sr_dist")
    monkeypatch.setattr(logging.getLogger("sr_dist"), "propagate", True)
    here = read(stream(photo_shards, steps=12))
    with patience(120):
        there = read(fetched(store, tmp_path, workers=workers, run_folder=tmp_path / "run"))
    assert all(same(here[step][0], there[step][0]) for step in here)
    tars = sorted(path.name for path in photo_shards.glob("*.tar"))
    assert {name: store.asked[name] for name in tars} == dict.fromkeys(tars, 1)
    said = [record.message for record in caplog.records if record.message.startswith("fetched from epoch")]
    total = sum(store.sent[name] for name in tars) / 1e6
    assert said[0] == f"fetched from epoch 0.00 to 1.00: node-000 {total:.1f} MB"
    assert said[1] == "fetched from epoch 1.00 to 2.00: node-000 0.0 MB"


def test_the_next_window_is_fetched_before_it_is_read(store, tmp_path):
    """Windows of ten samples touch two shards; the third comes without anybody reading it."""
    a_stream = fetched(store, tmp_path)
    arriving = a_stream.steps(1)
    next(arriving)
    with patience(60):
        while sum(store.sent[f"photos-00000{number}.tar"] > 0 for number in range(3)) < 3:
            sleep(0.01)
    a_stream.close()


def test_a_copy_that_went_bad_in_the_cache_is_fetched_again(store, photo_shards, tmp_path):
    here = read(stream(photo_shards, steps=12))
    read(fetched(store, tmp_path))
    for path in (tmp_path / "cache" / "tars").iterdir():
        data = bytearray(path.read_bytes())
        path.write_bytes(bytes(byte ^ 0xFF for byte in data))
    there = read(fetched(store, tmp_path))
    assert all(same(here[step][0], there[step][0]) for step in here)


def test_a_cache_of_one_shard_is_slow_but_right(store, photo_shards, tmp_path):
    here = read(stream(photo_shards, steps=12))
    largest = max(path.stat().st_size for path in photo_shards.glob("*.tar"))
    there = read(fetched(store, tmp_path, size=int(largest * 1.1)))
    assert all(same(here[step][0], there[step][0]) for step in here)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_nodes_take_the_same_batches_apart_by_where_the_shards_are(store, tmp_path, accumulate):
    """Four ranks on two nodes: the stretch of every micro-batch is whole, and each node keeps to its own shards if it can."""
    source = fetched(store, tmp_path).source
    node_of = [0, 0, 1, 1]
    parts = [Positions(0, 12, 10, accumulate, rank, 4, node_of, source.shard) for rank in range(4)]
    flat = [Positions(0, 12, 10, accumulate, rank, 4) for rank in range(4)]
    for near, plain in zip(zip(*parts, strict=True), zip(*flat, strict=True), strict=True):
        assert sorted(place for part in near for place in part) == [place for part in plain for place in part]
        assert [len(part) for part in near] == [len(part) for part in plain]
    at_home = [
        sum(source.shard(place) % 2 == node_of[rank] for rank in range(4) for mine in of[rank] for place in mine)
        for of in (parts, flat)
    ]
    assert at_home[0] > 1.2 * at_home[1]


# ------------------------------------------------------------------------------------------- kinds of data sets


def test_a_stored_lr_is_cropped_and_turned_with_its_hr(tmp_path, image_bytes, picture):
    """LR here is HR without every second pixel, so any misplaced crop or turn shows."""
    small = [picture(number, 20, 24) for number in range(6)]
    large = [lr.repeat(2, axis=0).repeat(2, axis=1) for lr in small]
    folder = handmade(tmp_path, [image_bytes(hr) for hr in large], [image_bytes(lr) for lr in small])
    for workers in (0, 2):
        for (batch,) in read(stream(folder, steps=9, workers=workers)).values():
            assert batch.lr.shape == (4, 3, 8, 8)
            assert torch.equal(batch.hr[..., ::2, ::2], batch.lr)


def test_whole_images_come_one_by_one_in_their_own_size(photo_shards, photos):
    images = originals(photos)
    steps = read(stream(photo_shards, crop=None, flip=False, rotate=False, workers=0))
    keys = []
    for batches in steps.values():
        assert [len(batch) for batch in batches] == [1, 1, 1, 1]
        for batch in batches:
            height, width = (side // SCALE * SCALE for side in images[batch.keys[0]].shape[:2])
            assert batch.hr.shape == (1, 3, height, width)
            assert batch.lr.shape == (1, 3, height // SCALE, width // SCALE)
            keys += batch.keys
    assert sorted(keys) == sorted(images)


def test_whole_images_lose_what_does_not_divide(tmp_path, image_bytes, picture):
    (tmp_path / "alone").mkdir()
    hr = picture(1, 11, 15)
    ((batch,),) = read(
        stream(handmade(tmp_path / "alone", [image_bytes(hr)]), crop=None, batch=1, steps=1, flip=False, rotate=False)
    ).values()
    assert np.array_equal(levels(batch.hr[0]).round(), hr[:10, :14])
    assert batch.lr.shape == (1, 3, 5, 7)


def test_whole_pairs_come_as_they_are_stored(tmp_path, image_bytes, picture):
    lr = picture(1, 5, 7)
    folder = handmade(tmp_path, [image_bytes(lr.repeat(2, 0).repeat(2, 1))], [image_bytes(lr)])
    ((batch,),) = read(stream(folder, crop=None, batch=1, steps=1, workers=1)).values()
    assert batch.lr.shape == (1, 3, 5, 7)
    assert torch.equal(batch.hr[..., ::2, ::2], batch.lr)


def test_whole_images_are_shared_by_ranks(photo_shards, monkeypatch):
    whole = read(stream(photo_shards, crop=None))
    for rank in range(2):
        monkeypatch.setattr(ranks, "size", lambda: 2)
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        mine = read(stream(photo_shards, crop=None))
        for step, batches in mine.items():
            assert [batch.keys for batch in batches] == [batch.keys for batch in whole[step][rank::2]]


def test_small_images_are_repeated_at_their_edges(tmp_path, image_bytes, picture):
    tiny = picture(5, 10, 12)
    folder = handmade(tmp_path, [image_bytes(tiny)])
    (batch,) = read(stream(folder, steps=1, batch=1, small="replicate", flip=False, rotate=False))[1]
    expected = np.pad(tiny, ((0, 6), (0, 4), (0, 0)), mode="edge")
    assert np.array_equal((batch.hr[0] * 255).round().byte().permute(1, 2, 0).numpy(), expected)


def test_a_selection_streams_what_it_chose_and_nothing_else(photo_shards):
    steps = read(stream(photo_shards, steps=6, batch=3, select={"cats": 3, "boats": 3}))
    counts = Counter(key for (batch,) in steps.values() for key in batch.keys)
    assert len(counts) == 6
    assert set(counts.values()) == {3}  # 18 places, 6 samples: three epochs
    assert Counter(key.split("/")[0] for key in counts) == {"cats": 3, "boats": 3}


def test_a_preview_is_the_beginning_of_the_order(photo_shards):
    a_stream = stream(photo_shards)
    first = read(stream(photo_shards))[1][0]
    shown = a_stream.preview(3)
    assert [batch.keys[0] for batch in shown] == list(first.keys[:3])
    assert all(torch.equal(batch.hr[0], hr) for batch, hr in zip(shown, first.hr, strict=False))
    assert len(a_stream.preview(1000)) == a_stream.samples == 24


def test_a_source_without_selection_reads_every_sample(photo_shards):
    everything = Samples(ShardReader(open_shards(str(photo_shards))), 0, 8192, Portion())
    assert everything.rows is None
    assert CropSource([everything], Mix([1]), SCALE, CROP_SIZE, 3).samples == 24
