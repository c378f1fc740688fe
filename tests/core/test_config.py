from __future__ import annotations

import re
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from sr_dist.core import config
from sr_dist.core.config import Absent, Names, Settings
from sr_dist.core.errors import UserError, nearest, nearest_path
from sr_dist.data.format import open_shards


class Inner(Settings):
    batch: Annotated[int, Field(gt=0)] = 4
    rate: float = 1.0


class Outer(Settings):
    name: str = "x"
    answer: str = "x"
    count: Annotated[int | None, Absent] = 3
    limit: Annotated[Annotated[int, Field(gt=0)] | None, Absent] = 3
    flag: bool = False
    words: Names = ()
    pair: tuple[float, float] = (0.0, 0.0)
    inner: Inner = Inner()
    kind: Literal["off", "no", "yes"] = "off"
    table: dict[str, int] = {}


def read(tmp_path, text: str):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return config.read(path)


# ------------------------------------------------------------------------------------------------------- text -> values


@pytest.mark.parametrize("text", ["2024_01", "no", "1e-4", "007", "0x10", "12:30", "true", "1.10"])
def test_a_name_stays_as_written(tmp_path, text):
    assert config.typed(Outer, read(tmp_path, f"name: {text}\n")).name == text
    assert config.typed(Outer, config.override({}, {"name": text})).name == text


def test_numbers_without_a_point_are_numbers(tmp_path):
    assert config.typed(Outer, read(tmp_path, "inner: {rate: 1e-4}\n")).inner.rate == 1e-4
    assert config.typed(Outer, read(tmp_path, "pair: [1e-4, .5]\n")).pair == (1e-4, 0.5)


def test_the_word_no_is_a_choice_and_the_flag_is_false(tmp_path):
    assert config.typed(Outer, read(tmp_path, "kind: no\n")).kind == "no"
    assert config.typed(Outer, read(tmp_path, "flag: no\n")).flag is False
    assert config.typed(Outer, read(tmp_path, "flag: yes\n")).flag is True


@pytest.mark.parametrize("text", ["none", "None", "null", "~", ""])
@pytest.mark.parametrize("key", ["count", "limit"])
def test_none_means_absent_also_where_a_number_is_bounded(tmp_path, key, text):
    assert getattr(config.typed(Outer, read(tmp_path, f"{key}: {text}\n")), key) is None


def test_a_bounded_number_stays_bounded_where_none_is_allowed():
    with pytest.raises(UserError, match=r"^limit: .*greater than 0"):
        config.typed(Outer, {"limit": "0"})


def test_words_come_as_a_list_or_with_commas():
    assert config.typed(Outer, {"words": "a, b,c"}).words == ("a", "b", "c")
    assert config.typed(Outer, {"words": ["a", "b"]}).words == ("a", "b")
    assert config.typed(Outer, {"words": ""}).words == ()


# ------------------------------------------------------------------------------------------------------------- override


def test_dotted_keys_reach_into_sections_and_make_them():
    tree = {"name": "a", "inner": {"batch": "4", "rate": "2"}}
    new = config.override(tree, {"inner.batch": "8", "table.cat": "3", "name": "b"})
    assert new == {"name": "b", "inner": {"batch": "8", "rate": "2"}, "table": {"cat": "3"}}
    assert tree == {"name": "a", "inner": {"batch": "4", "rate": "2"}}  # the tree that was read does not change


def test_lists_and_sections_in_short_form_replace():
    new = config.override({"inner": {"rate": "2"}}, {"pair": "[1e-4, 2]", "inner": "{batch: 8}", "table": "{a: 1, b: 2}"})
    settings = config.typed(Outer, new)
    assert (settings.pair, settings.inner, settings.table) == ((1e-4, 2.0), Inner(batch=8), {"a": 1, "b": 2})


def test_an_option_below_a_value_is_refused():
    with pytest.raises(UserError, match=r"inner\.batch\.x: 'inner\.batch' is not a section"):
        config.override({"inner": {"batch": "4"}}, {"inner.batch.x": "1"})


def test_a_list_that_does_not_close_is_refused_by_its_key():
    with pytest.raises(UserError, match=r"^pair: '\[1, 2' is not a list"):
        config.override({}, {"pair": "[1, 2"})


@given(st.dictionaries(st.from_regex(r"[a-z]{1,4}\.[a-z]{1,4}", fullmatch=True), st.text("abc019.e-", max_size=6), max_size=6))
def test_flat_is_the_inverse_of_override(options):
    assert config.flatten(config.override({}, options)) == (options or {})


# ------------------------------------------------------------------------------------------------------------- mistakes


def test_a_key_that_occurs_twice_is_refused_with_its_line(tmp_path):
    with pytest.raises(UserError, match=r"line 4: the key 'batch' occurs twice"):
        read(tmp_path, "name: a\ninner:\n  batch: 1\n  batch: 2\n")
    with pytest.raises(UserError, match=r"the key 'a' occurs twice"):
        config.override({}, {"table": "{a: 1, a: 2}"})


def test_the_same_key_in_two_sections_is_fine(tmp_path):
    assert read(tmp_path, "a: {x: 1}\nb: {x: 2}\n") == {"a": {"x": "1"}, "b": {"x": "2"}}


def test_unknown_key_names_the_nearest():
    with pytest.raises(UserError) as caught:
        config.typed(Outer, {"inner": {"bathc": "8"}})
    assert re.fullmatch(r"inner\.bathc: unknown key; did you mean '(inner\.)?batch'\?", str(caught.value))


def test_unknown_key_far_from_all_lists_the_keys():
    """The name of the section, which all keys share, does not make them nearer."""
    with pytest.raises(UserError, match=r"^inner\.zzzzzz: unknown key; choose from (inner\.)?batch, (inner\.)?rate$"):
        config.typed(Outer, {"inner": {"zzzzzz": "8"}})


def test_the_unknown_key_is_reported_before_the_missing_one():
    class Needs(Settings):
        crop: int

    with pytest.raises(UserError, match=r"^data\.corp: unknown key; did you mean '(data\.)?crop'\?$"):
        config.typed(Needs, {"corp": "8"}, "data")
    with pytest.raises(UserError, match=r"^data\.crop: this key is missing$"):
        config.typed(Needs, {}, "data")


@pytest.mark.parametrize("value", ["0", "-3", "1.5", "eight", "[8]"])
def test_a_wrong_value_is_one_line_with_key_and_value(value):
    tree = config.override({}, {"inner.batch": value})
    with pytest.raises(UserError) as caught:
        config.typed(Outer, tree)
    message = str(caught.value)
    assert message.startswith("inner.batch: ")
    assert value.strip("[]") in message
    assert "\n" not in message


def test_a_section_where_a_value_belongs_and_the_other_way_round():
    with pytest.raises(UserError, match=r"^name: "):
        config.typed(Outer, {"name": {"a": "b"}})
    with pytest.raises(UserError, match=r"^inner: .*got '8'"):
        config.typed(Outer, {"inner": "8"})


def test_a_missing_recipe_names_its_neighbour(tmp_path):
    (tmp_path / "demo_pixel.yaml").write_text("name: a\n")
    with pytest.raises(UserError, match=r"no recipe .*did you mean '.*demo_pixel\.yaml'"):
        config.read(tmp_path / "demo_pixl.yaml")


@pytest.mark.parametrize("content", [b"", b"just words", b"- a\n- b\n", b"a: [1, 2\nb: 3\n", b"a: \xff\xfe\n", b"\tname: x\n"])
def test_a_file_that_is_not_a_recipe_is_a_users_mistake(tmp_path, content):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"recipe\.yaml"):
        config.read(path)


def test_settings_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Outer().name = "b"  # type: ignore[misc]


def test_nearest_names_the_closest_or_all_or_nothing():
    assert nearest("srugen", ["srugan", "rrdb"]) == "; did you mean 'srugan'?"
    assert nearest("zzz", ["b", "a", "a"]) == "; choose from a, b"
    assert nearest("zzz", []) == ""


def test_a_near_path_is_close_in_its_last_name_and_whole(tmp_path, monkeypatch):
    """'/nope' is not nearly 'opt', however few letters both have; folders in common bring nothing nearer."""
    for name in ("opt", "mine", "photos", ".mime"):
        (tmp_path / "data" / name).mkdir(parents=True)
    data = tmp_path / "data"
    assert nearest_path(data / "photo") == f"; did you mean '{data}/photos'?"
    assert nearest_path(data / "mime") == f"; did you mean '{data}/mine'?"
    assert nearest_path(data / "nope") == nearest_path(tmp_path / "no" / "photos") == ""
    assert nearest_path(data / "nope", ["bicubic"]) == "; choose from bicubic"
    assert nearest_path(data / "bicubik", ["bicubic", "nearest"]).endswith("choose from bicubic, nearest")
    monkeypatch.chdir(data)
    assert nearest_path("photo") == "; did you mean 'photos'?"
    assert nearest_path("bicubik", ["bicubic", "nearest"]) == "; did you mean 'bicubic'?"
    with pytest.raises(UserError, match=rf"^data\.train: no folder '{data}/nope'$"):
        open_shards(f"{data}/nope", "data.train")


# ----------------------------------------------------------------------------------------------------------- round trip

names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
numbers = st.floats(allow_nan=False, allow_infinity=False)


@given(
    name=names,
    answer=st.sampled_from(["no", "yes", "null", "~", "1e-4", "2024_01", "# x", "a: b", "[1]", "{", " x ", "12:30", "0o7"]),
    limit=st.none() | st.integers(1, 10**9), count=st.none() | st.integers(-5, 5), flag=st.booleans(),
    pair=st.tuples(numbers, numbers), rate=numbers, words=st.lists(names, max_size=3).map(tuple),
    table=st.dictionaries(names, st.integers(), max_size=3),
)  # fmt: skip
def test_text_is_read_back_as_the_same_settings(tmp_path, rate, **values):
    settings = Outer(inner=Inner(rate=rate), **values)
    assert config.typed(Outer, read(tmp_path, config.text(settings))) == settings
