from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr_dist.core import config
from sr_dist.core.errors import UserError
from sr_dist.data.format import Index, Manifest, ShardEntry, Shards, attribute_bits, index_bytes, open_shards
from sr_dist.data.select import Portion, portion_of, portion_rows, rows_of_parts, short_groups
from sr_dist.evaluate import Evaluate
from sr_dist.recipe.sections import Recipe

CLASSES, ATTRIBUTES = ("chow", "tench"), ("Eyeglasses", "Smiling")


IMAGE = {"hr_bytes": 1, "width": 1, "height": 1}


def hash_of(name: str) -> bytes:
    return hashlib.md5(name.encode()).digest()


def shards_of(folder, samples, per_shard=4) -> Shards:
    """Shards as indexes alone, for selection reads nothing else. A sample is (name, class, eyeglasses, smiling)."""
    entries = []
    for number, low in enumerate(range(0, len(samples), per_shard)):
        rows = [
            {"key": name.encode(), "class": label, "attributes": attribute_bits(bits, 1), "hash": hash_of(name), **IMAGE}
            for name, label, *bits in samples[low : low + per_shard]
        ]
        (folder / f"a-{number:06d}.idx").write_bytes(index_bytes(rows, 1))
        entries.append(ShardEntry(name=f"a-{number:06d}.tar", bytes=1, samples=len(rows), sha256=""))
    facts = {"format": 1, "samples": len(samples), "min_side": 1, "order": {"seed": 0}}
    return Shards(folder, Manifest(**facts, classes=CLASSES, attributes=ATTRIBUTES, shards=tuple(entries)))


def selected(folder, samples, select, per_shard=4) -> list[str]:
    rows = portion_rows(shards_of(folder, samples, per_shard), Portion(select))
    assert len(rows) == -(-len(samples) // per_shard)
    assert all(np.all(np.diff(part) > 0) for part in rows)  # in tar order, none twice
    return sorted(samples[shard * per_shard + row][0] for shard, part in enumerate(rows) for row in part)


def first_by_hash(names, count) -> list[str]:
    return sorted(names, key=hash_of)[:count]


SAMPLES = [(f"image{i}", i % 2, i % 3 == 0, i % 5 == 0) for i in range(30)]


@given(
    st.lists(st.tuples(st.text("abcdef", min_size=1, max_size=8), st.integers(0, 1), st.booleans(), st.booleans()),
             min_size=8, max_size=24, unique_by=lambda sample: sample[0]),
    st.randoms(use_true_random=False), st.integers(1, 9), st.integers(1, 9),
)  # fmt: skip
def test_the_same_samples_are_chosen_whatever_their_order_and_their_shards(tmp_path, samples, random, per_shard, other):
    mixed = random.sample(samples, len(samples))
    select = {"rest": 6}
    assert selected(tmp_path, samples, select, per_shard) == selected(tmp_path, mixed, select, other)


def test_one_line_takes_the_first_by_content_hash(tmp_path):
    tench = [name for name, label, *_ in SAMPLES if label == 1]
    assert selected(tmp_path, SAMPLES, {"tench": 7}) == sorted(first_by_hash(tench, 7))


def test_each_class_takes_so_many_of_every_class(tmp_path):
    expected = [first_by_hash([name for name, label, *_ in SAMPLES if label == number], 4) for number in (0, 1)]
    assert selected(tmp_path, SAMPLES, {"each_class": 4}) == sorted(expected[0] + expected[1])


def test_rest_is_everything_that_fits_no_other_line_and_comes_last(tmp_path):
    glasses = [name for name, _, has, _ in SAMPLES if has]
    others = [name for name, _, has, _ in SAMPLES if not has]
    expected = sorted(first_by_hash(glasses, 3) + first_by_hash(others, 5))
    assert selected(tmp_path, SAMPLES, {"Eyeglasses": 3, "rest": 5}) == expected
    assert selected(tmp_path, SAMPLES, {"rest": 5, "Eyeglasses": 3}) == expected


def test_a_sample_that_fits_two_lines_counts_for_the_first(tmp_path):
    glasses = [name for name, _, has, _ in SAMPLES if has]
    smiling = [name for name, _, has, smiles in SAMPLES if smiles and not has]
    expected = sorted(first_by_hash(glasses, 2) + first_by_hash(smiling, 3))
    assert selected(tmp_path, SAMPLES, {"Eyeglasses": 2, "Smiling": 3}) == expected


def test_more_than_there_are_is_refused_with_both_numbers(tmp_path):
    with pytest.raises(UserError, match=r"^data\.select\.tench: 16 samples wanted, but there are 15; 'at most 16' takes these$"):
        selected(tmp_path, SAMPLES, {"tench": 16})
    with pytest.raises(
        UserError, match=r"^data\.select\.each_class \(chow\): 16 samples wanted, but there are 15; 'at most 16' takes these$"
    ):
        selected(tmp_path, SAMPLES, {"each_class": 16})
    with pytest.raises(UserError, match=r"^data\.select\.rest: 21 samples wanted, but there are 20; 'at most 21' takes these$"):
        selected(tmp_path, SAMPLES, {"Eyeglasses": 1, "rest": 21})


def test_equal_contents_are_told_apart_by_their_keys(tmp_path):
    """Whatever shards they lie in: here all images are one, and the first two by name are taken."""
    names = ["d", "a", "c", "b"]
    for order in (names, names[::-1]):
        shards = shards_of(tmp_path, [(name, 1, False, False) for name in order], per_shard=3)
        for number, low in enumerate((0, 3)):
            rows = [
                {"key": name.encode(), "class": 1, "attributes": bytes(1), "hash": bytes(16), **IMAGE}
                for name in order[low : low + 3]
            ]
            (tmp_path / f"a-{number:06d}.idx").write_bytes(index_bytes(rows, 1))
        tench_rows = portion_rows(shards, Portion({"tench": 2}))
        assert {order[3 * shard + row] for shard, rows in enumerate(tench_rows) for row in rows} == {"a", "b"}


def test_an_unknown_class_or_attribute_names_the_nearest(tmp_path):
    with pytest.raises(UserError, match=r"^data\.select\.Eyeglases: .*; did you mean 'Eyeglasses'\?$"):
        selected(tmp_path, SAMPLES, {"Eyeglases": 1})


def test_each_class_of_shards_without_classes_is_refused(tmp_path):
    shards = shards_of(tmp_path, [(name, -1, *bits) for name, _, *bits in SAMPLES])
    shards = replace(shards, manifest=shards.manifest.model_copy(update={"classes": ()}))
    with pytest.raises(UserError, match=r"^data\.select\.each_class: '.*' has no classes$"):
        portion_rows(shards, Portion({"each_class": 3}))


def test_shards_without_any_chosen_sample_have_an_empty_list(tmp_path):
    rows = portion_rows(shards_of(tmp_path, SAMPLES), Portion({"tench": 1}))
    assert sum(len(part) for part in rows) == 1
    assert len(rows) == 8


@pytest.mark.parametrize("portion", [Portion({"tench": 3, "rest": 5}, (0.5, 0.5)), Portion({}, (0.4, 0.3, 0.3))], ids=str)
def test_one_reading_of_the_indexes_gives_all_parts(tmp_path, monkeypatch, portion):
    shards, read = shards_of(tmp_path, SAMPLES), []
    monkeypatch.setattr(Shards, "index", lambda self, number: read.append(number) or Index(self.folder / f"a-{number:06d}.idx"))
    parts = rows_of_parts(shards, portion)
    assert read == list(range(len(shards.manifest.shards)))
    whole = portion_rows(shards, replace(portion, split=()))
    together = [np.sort(np.concatenate(rows)).tolist() for rows in zip(*parts, strict=True)]
    assert together == [rows.tolist() for rows in whole]
    for number, rows in enumerate(parts):
        own = portion_rows(shards, replace(portion, part=number))
        assert [part.tolist() for part in rows] == [part.tolist() for part in own]


def test_a_class_with_brackets_in_its_name_is_noted_like_others(tmp_path):
    """Two of ImageNet's classes are `crane`: a bird and a machine."""
    shards = shards_of(tmp_path, SAMPLES)
    names = tuple(name.replace("chow", "crane (bird)") for name in shards.manifest.classes)
    shards = replace(shards, manifest=shards.manifest.model_copy(update={"classes": names}))
    note = "15 samples, which are all (at most 16)"
    assert list(short_groups(shards, Portion({"crane (bird)": "at most 16"}))) == [f"data.select.crane (bird): {note}"]
    each = list(short_groups(shards, Portion({"each_class": "at most 16"})))
    assert each == [f"data.select.each_class ({name}): {note}" for name in names]


def test_at_most_takes_all_where_there_are_fewer(tmp_path):
    """15 samples of each class, and 10 with glasses."""
    shards = shards_of(tmp_path, SAMPLES)
    for select, exact in (
        ({"tench": "at most 16"}, {"tench": 15}),
        ({"tench": "at most 7"}, {"tench": 7}),
        ({"each_class": "at most 400"}, {"each_class": 15}),
        ({"Eyeglasses": "at most 13000", "rest": 5}, {"Eyeglasses": 10, "rest": 5}),
        ({"Eyeglasses": 1, "rest": "at most 21"}, {"Eyeglasses": 1, "rest": 20}),
    ):
        rows, expected = (portion_rows(shards, Portion(counts)) for counts in (select, exact))
        assert [list(own) for own in rows] == [list(own) for own in expected]
    portion = Portion({"Eyeglasses": "at most 13000", "tench": "at most 2", "rest": 1})
    assert list(short_groups(shards, portion)) == ["data.select.Eyeglasses: 10 samples, which are all (at most 13,000)"]
    assert list(short_groups(shards, Portion({"each_class": "at most 16"}))) == [
        f"data.select.each_class ({name}): 15 samples, which are all (at most 16)" for name in ("chow", "tench")
    ]


@pytest.mark.parametrize(
    ("recipe", "counts"),
    [
        ("classifier_hat", {"Wearing_Hat": 9818, "rest": 15000}),
        ("esrgan_eyeglasses_hat_16to64", {"Eyeglasses": 13000, "Wearing_Hat": 9418, "rest": 17000}),  # 400 hats count as glasses
    ],
)
def test_the_recipes_with_hats_select_from_the_counts_of_celeba(tmp_path, recipe, counts):
    """13,193 faces with glasses and 9,818 with a hat, as in the study's tables, 400 with both; 36,000 faces with neither."""
    faces = [(f"{i}", 0, i < 13193, 12793 <= i < 12793 + 9818) for i in range(13193 + 9418 + 36000)]
    shards = shards_of(tmp_path, faces, per_shard=20000)
    shards = replace(shards, manifest=shards.manifest.model_copy(update={"attributes": ("Eyeglasses", "Wearing_Hat")}))
    data = config.typed(Recipe, config.read(Path(__file__).parents[2] / "configs" / f"{recipe}.yaml")).data
    portion = replace(portion_of(data), split=())
    assert sum(map(len, portion_rows(shards, portion))) == sum(counts.values())
    limit = f"{portion.key}.Wearing_Hat: {counts['Wearing_Hat']:,} samples, which are all (at most 10,000)"
    assert list(short_groups(shards, portion)) == [limit]


@pytest.mark.parametrize("count", ["0", "-3", "at most 0", "at most", "at least 3", "3.5", "at most 3 of them"])
def test_a_count_is_a_number_or_at_most_a_number(count):
    with pytest.raises(UserError, match=rf"^select\.tench: '{count}' is neither a number of samples nor 'at most N'$"):
        config.typed(Evaluate, {"methods": "bicubic", "data": "d", "scale": "2", "select": {"tench": count}})


def test_real_shards_in_another_order_give_the_same_selection(photos, photo_shards, tmp_path):
    from shards.build import build

    build("class_folders", str(photos), tmp_path / "other", {"per_shard": "5", "seed": "3"})
    keys = []
    for folder in (photo_shards, tmp_path / "other"):
        shards = open_shards(str(folder))
        rows = portion_rows(shards, Portion({"each_class": 3}))
        keys.append({shards.index(i)["key"][row] for i, part in enumerate(rows) for row in part})
    assert keys[0] == keys[1]
    assert sorted(key.split(b"/")[0] for key in keys[0]) == [b"boats"] * 3 + [b"cats"] * 3 + [b"dunes"] * 3
