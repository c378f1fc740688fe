"""`data.split` and `data.balance`: which samples are for training, validation and test is a matter of their content alone."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_select import hash_of, shards_of

from sr_dist.core.errors import UserError
from sr_dist.data import select
from sr_dist.data.crops import CropSource, DataSet
from sr_dist.data.images import open_images
from sr_dist.data.order import Mix
from sr_dist.data.reader import ShardReader
from sr_dist.data.select import Portion, part_of, portion_of, portion_rows, shares
from sr_dist.recipe.labels import Labels
from sr_dist.recipe.sections import Data

SPLIT = (0.7, 0.15, 0.15)
SAMPLES = [(f"image{i}", i % 2, i % 3 == 0, i % 5 == 0) for i in range(400)]


def part_by_hand(name: str, split=SPLIT) -> int:
    """Where the second half of the hash, as a share of all 64-bit numbers, falls."""
    place = int.from_bytes(hash_of(name)[8:], "little") / 2**64
    return sum(place >= border for border in np.cumsum(split)[:-1])


def names(folder, samples, portion, per_shard=50) -> set[str]:
    rows = portion_rows(shards_of(folder, samples, per_shard), portion)
    assert all(np.all(np.diff(part) > 0) for part in rows)
    return {samples[shard * per_shard + row][0] for shard, part in enumerate(rows) for row in part}


@given(st.lists(st.text("abcdef", min_size=1, max_size=8), min_size=2, max_size=30, unique=True),
       st.randoms(use_true_random=False), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2))  # fmt: skip
def test_a_part_does_not_depend_on_order_or_shards(tmp_path, words, random, per_shard, other, part):
    samples = [(word, 0, False, False) for word in words]
    portion = Portion(split=SPLIT, part=part)
    expected = {word for word in words if part_by_hand(word) == part}
    assert names(tmp_path, samples, portion, per_shard) == expected
    assert names(tmp_path, random.sample(samples, len(samples)), portion, other) == expected


def test_more_samples_move_none_to_another_part(tmp_path):
    for part in range(3):
        few, all_of_them = (names(tmp_path, some, Portion(split=SPLIT, part=part)) for some in (SAMPLES[:200], SAMPLES))
        assert few <= all_of_them


def test_parts_are_as_large_as_their_shares(tmp_path):
    """400 samples: within four standard deviations of 280, 60 and 60, and each in one part."""
    parts = [names(tmp_path, SAMPLES, Portion(split=SPLIT, part=part)) for part in range(3)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 400
    for some, share in zip(parts, SPLIT, strict=True):
        assert abs(len(some) - 400 * share) < 4 * (400 * share * (1 - share)) ** 0.5


def test_what_is_selected_falls_into_all_parts(tmp_path):
    """Selection takes the first by hash; if the split looked at the same half of it, all would be for training."""
    select_100 = {"Eyeglasses": 50, "rest": 50}
    parts = [names(tmp_path, SAMPLES, Portion(select_100, SPLIT, part)) for part in range(3)]
    assert sum(map(len, parts)) == 100
    assert 55 <= len(parts[0]) <= 85 and len(parts[1]) >= 5 and len(parts[2]) >= 5


def test_the_first_half_of_the_hash_says_nothing_about_the_part():
    hashes = [hashlib.md5(str(i).encode()).digest() for i in range(200)]
    same_end = [first[:8] + hashes[0][8:] for first in hashes]
    parts = part_of(np.array([np.void(one) for one in same_end]), SPLIT)
    assert len(set(parts.tolist())) == 1


def test_training_and_validation_take_their_parts_of_the_same_shards(photo_shards):
    data = Data(train=str(photo_shards), crop=16, batch=4, split=(0.5, 0.5))
    everything = DataSet(ShardReader(open_images(str(photo_shards)).reader.shards), 0, 8192, portion_of(data))
    source = CropSource([everything], Mix([1]), 2, 16, 3)
    trained = {source.key(place) for place in range(source.samples)}
    seen = set(open_images(str(photo_shards), portion=portion_of(data, 1)).names)
    assert trained and seen and not trained & seen
    assert trained | seen == set(open_images(str(photo_shards)).names)


def test_folders_of_images_have_no_parts(photos):
    with pytest.raises(UserError, match=r"is a folder of images; only shards have parts"):
        open_images(str(photos), portion=Portion())


def test_a_balance_is_a_selection_with_and_without(tmp_path):
    data = Data(train="x", crop=16, batch=4, balance={"Eyeglasses": ["30", "50"]}, split=SPLIT)
    assert portion_of(data, 2) == Portion({"Eyeglasses": 30, "rest": 50}, SPLIT, 2, "data.balance")
    assert portion_of(Data(train="x", crop=16, batch=4), 1) == Portion()
    with pytest.raises(UserError, match=r"^data\.balance\.rest: 5000 samples wanted, but there are \d+"):
        names(tmp_path, SAMPLES, Portion({"Eyeglasses": 30, "rest": 5000}, key="data.balance"))
    selected = names(tmp_path, SAMPLES, Portion({"Eyeglasses": 30, "rest": 50}))
    glasses = {name for name, _, has, _ in SAMPLES if has}
    assert (len(selected & glasses), len(selected - glasses)) == (30, 50)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"split": [0.7, 0.2]}, "are not two or three shares with the sum 1"),
        ({"split": [0.25] * 4}, "are not two or three shares with the sum 1"),
        ({"split": [0.5, 0.5], "validation": "y"}, "the second part of data.train; say --data.validation=none"),
        ({"balance": {"a": [1, 2], "b": [1, 2]}}, "balance takes one attribute"),
        ({"balance": {"a": [1, 2]}, "select": {"b": 1}}, "balance takes one attribute and excludes select"),
    ],
)
def test_what_cannot_be_split_or_balanced_is_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        Data(train="x", crop=16, batch=4, **options)


def test_shares_are_counted_in_the_training_part(tmp_path):
    shards = shards_of(tmp_path, SAMPLES, 50)
    train = [sample for sample in SAMPLES if part_by_hand(sample[0]) == 0]
    tench = np.mean([label for _, label, *_ in train])
    measured = shares(shards, Portion(split=SPLIT), Labels("class", ("chow", "tench")))
    assert measured == pytest.approx((1 - tench, tench), abs=1e-6)
    smiling = np.mean([smiles for *_, smiles in train])
    assert shares(shards, Portion(split=SPLIT), Labels("attributes", ("Smiling",))) == pytest.approx((smiling,), abs=1e-6)
    assert select.shares(shards, Portion(), Labels("class", ("chow", "tench"))) == (0.5, 0.5)
