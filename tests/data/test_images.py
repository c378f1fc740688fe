"""Every image is scored once, over all ranks, in batches that do not depend on them."""

from __future__ import annotations

import gc
import shutil
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from scoring import batches, levels, scored

from sr_dist.core import ranks
from sr_dist.core.errors import UserError
from sr_dist.data.folder_images import FolderImages
from sr_dist.data.format import ShardError, Shards, index_bytes, index_columns, open_shards
from sr_dist.data.image_pairs import load
from sr_dist.data.images import ShardImages, contents_of, open_images

# ----------------------------------------------------------------------------------------------------------------- shards


@pytest.mark.parametrize(("column", "value"), [("class", 2), ("attributes", b"\1")])
def test_a_digest_follows_the_labels_too(photo_shards, tmp_path, column, value):
    shards = open_shards(str(shutil.copytree(photo_shards, tmp_path / "other")))
    index = shards.index(0)
    rows = [{name: index[name][i] for name, _ in index_columns(1, 1)} for i in range(len(index))]
    rows = [{**row, "hash": bytes(row["hash"]), "attributes": bytes(row["attributes"])} for row in rows]
    assert rows[0][column] != value
    rows[0][column] = value
    index.path.write_bytes(index_bytes(rows, 1))
    before, after = (open_images(str(folder)) for folder in (photo_shards, shards.folder))
    changed = before.names.index(rows[0]["key"].decode())
    assert [i for i in range(24) if before.digest(i) != after.digest(i)] == [changed]


def test_shards_are_read_in_the_order_of_their_keys(photo_shards, photos):
    images = open_images(str(photo_shards))
    assert isinstance(images, ShardImages)
    assert images.names == sorted(path.relative_to(photos).with_suffix("").as_posix() for path in photos.rglob("*.*"))
    for i in (0, 7, 23):
        expected = np.array(Image.open(next(photos.glob(f"{images.names[i]}.*"))))
        hr, lr, label = images.load(i)
        assert np.abs(hr.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 3
        assert images.shape(i) == (*expected.shape[:2], False)
        assert lr is None
        assert ("boats", "cats", "dunes")[label] == images.names[i].split("/")[0]


def test_a_limit_takes_the_first_of_the_sorted_list(photo_shards, photos):
    everything = open_images(str(photo_shards)).names
    assert open_images(str(photo_shards), 5).names == everything[:5]
    files = open_images(str(photos), 5)
    assert isinstance(files, FolderImages)
    assert files.names == everything[:5]


def test_a_folder_and_its_shards_give_the_same_images(photo_shards, photos):
    left, right = scored(photo_shards), scored(photos)
    assert [batch.names for batch in left] == [batch.names for batch in right]
    assert all(torch.equal(a.hr, b.hr) and torch.equal(a.lr, b.lr) for a, b in zip(left, right, strict=True))


def test_damage_in_a_shard_names_shard_and_key(photo_shards, tmp_path):
    folder = shutil.copytree(photo_shards, tmp_path / "damaged")
    shards = open_shards(str(folder))
    index = shards.index(2)
    data = bytearray(shards.paths()[2].read_bytes())
    data[int(index["hr_offset"][3]) + 50] ^= 1
    shards.paths()[2].write_bytes(data)
    for workers in (0, 1):
        with pytest.raises(ShardError, match=rf"photos-000002\.tar.*'{index['key'][3].decode()}'"):
            scored(folder, workers=workers)


def test_indexes_are_opened_once_however_many_shards_there_are(photo_shards, monkeypatch):
    """The sorted list goes through all shards at random, and a reader keeps few of them open."""
    opened, index = [], Shards.index
    monkeypatch.setattr(Shards, "OPEN_AT_ONCE", 1)
    monkeypatch.setattr(Shards, "index", lambda shards, shard: opened.append(shard) or index(shards, shard))
    images = batches(photo_shards)
    assert len(images) > 3
    assert images.notes() == []
    contents_of(images.images)
    assert opened == [0, 1, 2]


# --------------------------------------------------------------------------------------------------------- batches, ranks


def test_a_pair_that_is_not_scale_times_apart_is_refused(save):
    save("a_HR.png", 24, 32)
    save("a_LR.png", 12, 15)
    with pytest.raises(UserError, match=r"'a_HR': LR 15 x 12 and HR 32 x 24 are not 2 times apart"):
        scored(save.folder)


def test_a_pair_whose_hr_is_a_little_larger_is_cropped(save):
    hr, _ = save("a_HR.png", 26, 35), save("a_LR.png", 6, 8)
    (batch,) = scored(save.folder, scale=4)
    assert np.array_equal(levels(batch.hr[0]), hr[:24, :32])


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_sizes_that_do_not_divide_are_cropped_at_the_lower_right(save, scale):
    hr = save("a.png", 29, 35)
    (batch,) = scored(save.folder, scale)
    height, width = 29 // scale * scale, 35 // scale * scale
    assert np.array_equal(levels(batch.hr[0]), hr[:height, :width])
    assert batch.lr.shape == (1, 3, height // scale, width // scale)


def test_an_image_below_the_scale_is_a_users_mistake(save):
    save("a.png", 3, 40)
    with pytest.raises(UserError, match=r"'a' \(40 x 3\) is smaller than the scale 4"):
        scored(save.folder, scale=4)


def test_what_happens_to_images_is_counted(save):
    save("a.png", 25, 32)
    save("b.png", 24, 32, "L")
    save("c.png", 24, 31, "RGBA")
    Image.fromarray(np.zeros((24, 24), np.uint16)).save(save.folder / "d.png")
    assert batches(save.folder).notes() == [
        "2 of 4 images cropped at the right and below to a multiple of 2",
        "2 of 4 images stored grey, so their own Y",
        "1 of 4 images without their transparency",
        "1 of 4 images of 16 bits, read as 8",
    ]
    assert batches(save.folder, limit=1).notes() == ["1 of 1 images cropped at the right and below to a multiple of 2"]


def test_batches_hold_one_size_and_at_most_so_many(photo_shards):
    loaded = scored(photo_shards, size=3)
    assert all(1 <= len(batch.names) <= 3 for batch in loaded)
    assert [name for batch in loaded for name in batch.names] == open_images(str(photo_shards)).names


def test_batches_hold_few_large_images(save, monkeypatch):
    """Of at most so many pixels, unless it is one image."""
    monkeypatch.setattr("sr_dist.data.image_pairs.MOST_PIXELS", 1000)
    for i, size in enumerate([*[(20, 25)] * 5, (40, 50), (10, 10)]):
        save(f"{i}.png", *size)
    assert [len(group) for group in batches(save.folder, size=8).groups] == [2, 2, 1, 1, 1]


def test_neighbours_of_one_size_are_together(save):
    for number, side in enumerate([16, 16, 16, 20, 20, 16, 16, 16, 16, 16]):
        save(f"{number}.png", side, 16)
    assert [len(batch.names) for batch in scored(save.folder, size=4)] == [3, 2, 4, 1]
    assert [len(batch.names) for batch in scored(save.folder, size=1)] == [1] * 10


@pytest.mark.parametrize("world", [1, 2, 3, 5, 30])
def test_every_image_comes_once_over_all_ranks_in_the_same_batches(photo_shards, monkeypatch, world):
    whole = [batch.names for batch in scored(photo_shards, size=2)]
    together = []
    for rank in range(world):
        monkeypatch.setattr(ranks, "size", lambda: world)
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        together.append([batch.names for batch in scored(photo_shards, size=2)])
    assert [names for mine in together for names in mine] == whole
    assert max(map(len, together)) - min(map(len, together)) <= 1


def test_workers_change_nothing(photo_shards):
    inline, by_workers = scored(photo_shards), scored(photo_shards, workers=2)
    assert [batch.names for batch in inline] == [batch.names for batch in by_workers]
    assert all(torch.equal(a.hr, b.hr) and torch.equal(a.lr, b.lr) for a, b in zip(inline, by_workers, strict=True))
    assert all(isinstance(batch.names, tuple) for batch in by_workers)


def test_a_loader_that_the_collector_ends_in_its_own_thread_ends_quietly(photo_shards, monkeypatch):
    """A generator in a circle of references, left early: the collector runs in the thread that loads one batch ahead."""
    left, ended, problems = threading.Event(), threading.Event(), []
    gc.collect()  # what other tests have left is not collected here
    monkeypatch.setattr(sys, "unraisablehook", problems.append)
    result = batches(photo_shards, size=1)
    original = type(result).__getitem__

    def collecting(self, number):
        if number == 1:
            left.wait(60)
            gc.collect()
            ended.set()
        return original(self, number)

    monkeypatch.setattr(type(result), "__getitem__", collecting)
    before = set(threading.enumerate())
    loader = load(result, range(4))
    next(loader)
    threads = [thread for thread in threading.enumerate() if thread not in before and thread.name.startswith("load")]
    circle = [loader]
    circle.append(circle)
    gc.disable()
    try:
        del loader, circle
        left.set()
        assert ended.wait(60)
    finally:
        gc.enable()
    assert len(threads) == 1 and not problems
    threads[0].join(60)
    assert not threads[0].is_alive()
