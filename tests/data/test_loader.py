from __future__ import annotations

import pickle
from collections import Counter
from contextlib import closing
from time import sleep

import numpy as np
import pytest
import torch
from loaders import CROP_SIZE, SCALE, levels, loader_of, originals, patience, read, same
from made_shards import handmade
from PIL import Image
from processes import LONGEST

from sr_dist.core import ranks
from sr_dist.core.errors import UserError
from sr_dist.core.resize import imresize
from sr_dist.data import reader as reader_module
from sr_dist.data.crops import CropSource, DataSet, Positions
from sr_dist.data.format import Shards, open_shards
from sr_dist.data.loader import Start
from sr_dist.data.order import CROP, Mix, Order, crop_corner, draw
from sr_dist.data.reader import ShardReader
from sr_dist.data.select import Portion

# -------------------------------------------------------------------------------------------------------------- batches


def test_batches_have_the_promised_shapes_and_values(photo_shards):
    steps = read(loader_of(photo_shards))
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
    for (batch,) in read(loader_of(photo_shards)).values():
        assert torch.equal(batch.lr, imresize(batch.hr, 1 / SCALE, to_8_bit=True))
        for hr, lr in zip(batch.hr, batch.lr, strict=True):  # Pillow's differs at the borders alone
            pillow = Image.fromarray(levels(hr).round().astype(np.uint8)).resize((8, 8), Image.Resampling.BICUBIC)
            assert np.abs(np.array(pillow) - levels(lr))[2:-2, 2:-2].max() <= 1.01


def test_a_crop_is_the_window_that_the_order_says_in_one_of_eight_orientations(photo_shards, photos):
    """Against Pillow; its JPEG decoder may differ from torchvision's by a level or two."""
    images, turns = originals(photos), Counter()
    order = Order([8, 8, 8], 0, window=10)
    for step, (batch,) in read(loader_of(photo_shards)).items():
        for i, (hr, key) in enumerate(zip(batch.hr, batch.keys, strict=True)):
            epoch, sample = order.at((step - 1) * 4 + i)
            photo = images[key]
            top, left = crop_corner(draw(0, epoch, sample, CROP), *photo.shape[:2], CROP_SIZE, SCALE)
            window = photo[top : top + CROP_SIZE, left : left + CROP_SIZE].astype(float)
            eight = [np.rot90(side, k) for side in (window, window[:, ::-1]) for k in range(4)]
            distances = [np.abs(levels(hr) - expected).max() for expected in eight]
            assert min(distances) <= 3
            turns[int(np.argmin(distances))] += 1
    assert len(turns) > 4


def test_without_flips_and_turns_the_crop_is_upright(photo_shards, photos):
    images, order = originals(photos), Order([8, 8, 8], 3, window=10)
    for step, (batch,) in read(loader_of(photo_shards, steps=12, seed=3, flip=False, rotate=False)).items():
        for i, (hr, key) in enumerate(zip(batch.hr, batch.keys, strict=True)):
            epoch, sample = order.at((step - 1) * 4 + i)
            top, left = crop_corner(draw(3, epoch, sample, CROP), *images[key].shape[:2], CROP_SIZE, SCALE)
            window = images[key][top : top + CROP_SIZE, left : left + CROP_SIZE].astype(float)
            assert np.abs(levels(hr) - window).max() <= 3


def test_an_epoch_holds_every_key_once_and_the_next_cuts_other_crops(photo_shards):
    steps = read(loader_of(photo_shards, steps=12, flip=False, rotate=False))
    batches = [batch for (batch,) in steps.values()]
    first, second = (Counter(key for batch in epoch for key in batch.keys) for epoch in (batches[:6], batches[6:]))
    assert first == second == dict.fromkeys(first, 1)
    assert len(first) == 24
    crops = [
        {key: hr for batch in epoch for key, hr in zip(batch.keys, batch.hr, strict=True)} for epoch in (batches[:6], batches[6:])
    ]
    assert sum(torch.equal(crops[0][key], crops[1][key]) for key in first) < 6


def test_grey_networks_get_one_channel(photo_shards, photos):
    (batch,) = read(loader_of(photo_shards, steps=1, channels=1))[1]
    assert batch.hr.shape == (4, 1, 16, 16)
    assert batch.lr.shape == (4, 1, 8, 8)


# ------------------------------------------------------------------------------------- workers, ranks and resuming


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_gives_the_same_batches(photo_shards, workers):
    expected = read(loader_of(photo_shards, accumulate=2, batch=5))
    with patience(LONGEST):
        steps = read(loader_of(photo_shards, accumulate=2, batch=5, workers=workers))
    assert steps.keys() == expected.keys()
    for step in steps:
        assert len(steps[step]) == len(expected[step]) == 2
        assert all(same(left, right) for left, right in zip(steps[step], expected[step], strict=True))


@pytest.mark.parametrize(("workers", "accumulate"), [(1, 1), (1, 3), (2, 3), (3, 2)])
def test_a_batch_in_use_is_not_overwritten(photo_shards, workers, accumulate):
    """Workers fill all of their slots while the rank uses a step."""
    expected = dict(loader_of(photo_shards, accumulate=accumulate, batch=7, steps=12).crop_steps(1))
    with patience(LONGEST), closing(loader_of(photo_shards, accumulate=accumulate, batch=7, steps=12, workers=workers)) as loader:
        for step, micro_batches in loader.crop_steps(1):
            sleep(0.05)
            assert [crops.keys for crops in micro_batches] == [crops.keys for crops in expected[step]]
            assert all(torch.equal(crops.hr, other.hr) for crops, other in zip(micro_batches, expected[step], strict=True))


def test_too_little_shared_memory_is_an_error(photo_shards, monkeypatch):
    def full(size, device):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch>: No space left on device (28)")

    monkeypatch.setattr(torch.UntypedStorage, "_new_shared", full)
    with pytest.raises(
        UserError,
        match=r"data\.workers: 2 workers need 18 MiB of shared memory .* on every rank .*No space left.*--shm-size",
    ):
        read(loader_of(photo_shards, crop=512, small="replicate", batch=4, workers=2))


@pytest.mark.parametrize(("world", "accumulate"), [(1, 3), (2, 1), (3, 2), (7, 1)])
def test_any_number_of_ranks_and_micro_batches_gives_the_same_samples(photo_shards, world, accumulate, monkeypatch):
    """A batch of 7 is not divisible by 2, 3 or 6: the pieces differ by one image, and concatenated they are the whole batch."""
    whole = {step: batch for step, (batch,) in read(loader_of(photo_shards, batch=7)).items()}
    pieces = []
    for rank in range(world):
        monkeypatch.setattr(ranks, "size", lambda: world)
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        pieces.append(read(loader_of(photo_shards, batch=7, accumulate=accumulate)))
    for step, batch in whole.items():
        together = [pieces[rank][step][micro] for micro in range(accumulate) for rank in range(world)]
        assert [key for piece in together for key in piece.keys] == list(batch.keys)
        assert torch.equal(torch.cat([piece.hr for piece in together]), batch.hr)
        assert torch.equal(torch.cat([piece.lr for piece in together]), batch.lr)
        assert torch.equal(torch.cat([piece.label for piece in together]), batch.label)


def test_resuming_is_starting_at_another_step(photo_shards):
    whole = read(loader_of(photo_shards, steps=14))
    rest = read(loader_of(photo_shards, steps=14), first=9)
    assert list(rest) == list(range(9, 15))
    assert all(same(rest[step][0], whole[step][0]) for step in rest)


def test_the_position_is_known_before_the_first_step(photo_shards):
    """404 positions after 100 steps, as in a run that began with another batch size. Nothing is read for this."""
    loader = loader_of(photo_shards, steps=102, start=Start(position=404, done=100))
    assert [loader.position_after(step) for step in (100, 101)] == [404, 408]
    keys = [batch.keys for (batch,) in read(loader, first=101).values()]
    assert keys == [batch.keys for (batch,) in read(loader_of(photo_shards, steps=103), first=102).values()]


def test_positions_of_a_rank_are_its_share_of_every_step():
    assert list(Positions(start=10, steps=2, batch=5, accumulate=2, rank=0, num_ranks=1)) == [
        range(10, 12), range(12, 15), range(15, 17), range(17, 20),
    ]  # fmt: skip


def test_a_source_can_be_sent_to_a_worker_at_any_time(photo_shards):
    source = loader_of(photo_shards).source
    before = source[range(3)]
    after = pickle.loads(pickle.dumps(source))[range(3)]
    assert torch.equal(before.hr, after.hr)
    assert before.keys == after.keys
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
    ("files", "num_readers", "shards"), [(8, 2, 2), (1024, 2, 192), (1024, 4, 96), (10**6, 2, 256), (-1, 9, 256)]
)
def test_all_readers_of_a_process_together_leave_files_to_others(photo_shards, monkeypatch, files, num_readers, shards):
    monkeypatch.setattr(reader_module.resource, "getrlimit", lambda _: (files, files))
    reader = ShardReader(open_shards(str(photo_shards)), num_readers)
    assert reader._max_open == pickle.loads(pickle.dumps(reader))._max_open == shards
    assert files < 16 or num_readers * 2 * shards <= files * 3 / 4


# ------------------------------------------------------------------------------------------------- several data sets


def test_two_data_sets_are_mixed_by_weight_and_have_their_own_epochs(photo_shards, tmp_path, image_bytes, make_photo):
    """Photographs are twice as frequent as the five other images: 24 and 12 of 36 positions."""
    others = handmade(tmp_path, [image_bytes(make_photo(number, 24, 24)) for number in range(5)])
    weights = {str(photo_shards): 2, str(others): 1}
    loader = loader_of(photo_shards, others, train=weights, steps=9)
    assert loader.samples == 29
    keys = [key for (batch,) in read(loader).values() for key in batch.keys]
    assert [key.startswith("sample") for key in keys] == [False, True, False] * 12
    assert set(Counter(key for key in keys if not key.startswith("sample")).values()) == {1}
    assert sorted(Counter(key for key in keys if key.startswith("sample")).values()) == [2, 2, 2, 3, 3]
    rest = read(loader_of(photo_shards, others, train=weights, steps=9), first=6)
    assert [key for (batch,) in rest.values() for key in batch.keys] == keys[20:]


# ------------------------------------------------------------------------------------------- kinds of data sets


def test_a_stored_lr_is_cropped_and_turned_with_its_hr(tmp_path, image_bytes, make_photo):
    """LR is every second pixel of HR, so a misplaced crop or a wrong turn shows."""
    small = [make_photo(number, 20, 24) for number in range(6)]
    large = [lr.repeat(2, axis=0).repeat(2, axis=1) for lr in small]
    folder = handmade(tmp_path, [image_bytes(hr) for hr in large], [image_bytes(lr) for lr in small])
    for workers in (0, 2):
        for (batch,) in read(loader_of(folder, steps=9, workers=workers)).values():
            assert batch.lr.shape == (4, 3, 8, 8)
            assert torch.equal(batch.hr[..., ::2, ::2], batch.lr)


def test_whole_images_come_one_by_one_in_their_own_size(photo_shards, photos):
    images = originals(photos)
    steps = read(loader_of(photo_shards, crop=None, flip=False, rotate=False, workers=0))
    keys = []
    for batches in steps.values():
        assert [len(batch) for batch in batches] == [1, 1, 1, 1]
        for batch in batches:
            height, width = (side // SCALE * SCALE for side in images[batch.keys[0]].shape[:2])
            assert batch.hr.shape == (1, 3, height, width)
            assert batch.lr.shape == (1, 3, height // SCALE, width // SCALE)
            keys += batch.keys
    assert sorted(keys) == sorted(images)


def test_whole_images_are_cropped_to_a_multiple_of_the_scale(tmp_path, image_bytes, make_photo):
    (tmp_path / "alone").mkdir()
    hr = make_photo(1, 11, 15)
    ((batch,),) = read(
        loader_of(handmade(tmp_path / "alone", [image_bytes(hr)]), crop=None, batch=1, steps=1, flip=False, rotate=False)
    ).values()
    assert np.array_equal(levels(batch.hr[0]).round(), hr[:10, :14])
    assert batch.lr.shape == (1, 3, 5, 7)


def test_whole_pairs_come_as_they_are_stored(tmp_path, image_bytes, make_photo):
    lr = make_photo(1, 5, 7)
    folder = handmade(tmp_path, [image_bytes(lr.repeat(2, 0).repeat(2, 1))], [image_bytes(lr)])
    ((batch,),) = read(loader_of(folder, crop=None, batch=1, steps=1, workers=1)).values()
    assert batch.lr.shape == (1, 3, 5, 7)
    assert torch.equal(batch.hr[..., ::2, ::2], batch.lr)


def test_whole_images_are_shared_by_ranks(photo_shards, monkeypatch):
    whole = read(loader_of(photo_shards, crop=None))
    for rank in range(2):
        monkeypatch.setattr(ranks, "size", lambda: 2)
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        of_rank = read(loader_of(photo_shards, crop=None))
        for step, batches in of_rank.items():
            assert [batch.keys for batch in batches] == [batch.keys for batch in whole[step][rank::2]]


def test_small_images_are_repeated_at_their_edges(tmp_path, image_bytes, make_photo):
    tiny = make_photo(5, 10, 12)
    folder = handmade(tmp_path, [image_bytes(tiny)])
    (batch,) = read(loader_of(folder, steps=1, batch=1, small="replicate", flip=False, rotate=False))[1]
    expected = np.pad(tiny, ((0, 6), (0, 4), (0, 0)), mode="edge")
    assert np.array_equal((batch.hr[0] * 255).round().byte().permute(1, 2, 0).numpy(), expected)


def test_a_selection_reads_only_the_selected_samples(photo_shards):
    steps = read(loader_of(photo_shards, steps=6, batch=3, select={"cats": 3, "boats": 3}))
    counts = Counter(key for (batch,) in steps.values() for key in batch.keys)
    assert len(counts) == 6
    assert set(counts.values()) == {3}  # 18 positions, 6 samples: three epochs
    assert Counter(key.split("/")[0] for key in counts) == {"cats": 3, "boats": 3}


def test_the_first_batches_are_the_beginning_of_the_order(photo_shards):
    loader = loader_of(photo_shards)
    first = read(loader_of(photo_shards))[1][0]
    batches = loader.first_batches(3)
    assert [batch.keys[0] for batch in batches] == list(first.keys[:3])
    assert all(torch.equal(batch.hr[0], hr) for batch, hr in zip(batches, first.hr, strict=False))
    assert len(loader.first_batches(1000)) == loader.samples == 24


def test_a_source_without_selection_reads_every_sample(photo_shards):
    everything = DataSet(ShardReader(open_shards(str(photo_shards))), 0, 8192, Portion())
    assert everything.rows is None
    assert CropSource([everything], Mix([1]), SCALE, CROP_SIZE, 3).samples == 24
