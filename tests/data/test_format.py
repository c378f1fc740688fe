from __future__ import annotations

import json
import shutil
import struct
import tarfile
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.writer import member_header
from sr_dist.core.errors import UserError
from sr_dist.data.format import (
    Index,
    Manifest,
    ShardEntry,
    ShardError,
    attribute_bits,
    attribute_values,
    index_bytes,
    index_name,
    open_shards,
    read_manifest,
    write_manifest,
)

u4, u8, i4 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.integers(-(2**31), 2**31 - 1)
key = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=90).map(str.encode)


def rows_of(attributes: int):
    return st.lists(
        st.fixed_dictionaries(
            {"key": key, "hr_offset": u8, "hr_bytes": u4, "hr_crc32": u4, "width": u4, "height": u4, "class": i4,
             "mode": st.integers(0, 4), "hash": st.binary(min_size=16, max_size=16),
             "bits": st.lists(st.booleans(), min_size=attributes, max_size=attributes)},
            optional={"lr_offset": u8, "lr_bytes": u4, "lr_crc32": u4, "lr_width": u4, "lr_height": u4},
        ), max_size=6,
    )  # fmt: skip


def written(path, rows, attributes=0):
    width = (attributes + 7) // 8
    whole = [{**row, "attributes": attribute_bits(row["bits"], max(width, 1))} for row in rows]
    path.write_bytes(index_bytes(whole, width))
    return Index(path)


ROW = {
    "key": b"cats/one", "hr_offset": 512, "hr_bytes": 3000, "hr_crc32": 77, "width": 48, "height": 32, "class": 1, "mode": 0,
    "hash": b"0123456789abcdef", "bits": (True, False, True),
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ the index


@given(st.integers(0, 45).flatmap(lambda attributes: st.tuples(st.just(attributes), rows_of(attributes))))
def test_an_index_gives_back_its_rows(tmp_path, drawn):
    attributes, rows = drawn
    index = written(tmp_path / "a.idx", rows, attributes)
    index.check()
    assert len(index) == len(rows)
    for column in ("hr_offset", "hr_bytes", "hr_crc32", "width", "height", "class", "mode", "lr_offset", "lr_bytes", "lr_crc32"):
        assert index[column].tolist() == [row.get(column, 0) for row in rows], column
    assert [name.decode() for name in index["key"].tolist()] == [row["key"].decode() for row in rows]
    assert [bytes(value) for value in index["hash"]] == [row["hash"] for row in rows]
    values = attribute_values(index["attributes"], attributes) if rows else np.zeros((0, attributes))
    assert values.tolist() == [[int(bit) for bit in row["bits"]] for row in rows]


def test_the_bytes_of_an_index_are_as_documented(tmp_path):
    """Read with nothing but struct, from the words at the top of `format.py`."""
    written(tmp_path / "a.idx", [ROW, {**ROW, "key": b"cat", "class": -1, "hr_offset": 2**40, "lr_bytes": 9}], 3)
    data = (tmp_path / "a.idx").read_bytes()
    magic, version, key_width, attribute_bytes, crc32, samples = struct.unpack_from("<8sIIIIQ", data)
    assert (magic, version, key_width, attribute_bytes, samples) == (b"SRDISTIX", 1, 8, 1, 2)
    assert crc32 == zlib.crc32(data[32:])
    columns = "<2Q 2Q 2I 2I 2I 2I 2I 2I 2I 2I 2i 2B 16s16s 8s8s ss"
    values = struct.unpack_from(columns.replace(" ", ""), data, 32)
    assert len(data) == 32 + struct.calcsize(columns.replace(" ", ""))
    assert values[:2] == (512, 2**40)  # hr_offset
    assert values[8:10] == (0, 9)  # lr_bytes
    assert values[20:22] == (1, -1)  # class
    assert values[24:] == (b"0123456789abcdef", b"0123456789abcdef", b"cats/one", b"cat\0\0\0\0\0", b"\x05", b"\x05")


def test_an_index_of_no_samples_is_an_index(tmp_path):
    index = written(tmp_path / "a.idx", [])
    index.check()
    assert len(index) == 0
    assert index["width"].tolist() == []
    assert index["hash"].shape == (0,)


def test_attribute_bits_count_from_the_lowest():
    assert attribute_bits([True, False, False, False, False, False, False, False, False, True], 2) == b"\x01\x02"
    assert attribute_bits([], 1) == b"\0"


@given(st.data())
def test_any_flipped_bit_of_an_index_is_noticed(tmp_path, data):
    path = tmp_path / "a.idx"
    written(path, [ROW, {**ROW, "key": b"dogs/two"}], 3)
    whole = bytearray(path.read_bytes())
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(whole)
    with pytest.raises(ShardError, match=r"a\.idx"):
        Index(path).check()


@given(st.data())
def test_any_cut_of_an_index_is_noticed_when_it_is_opened(tmp_path, data):
    path = tmp_path / "a.idx"
    written(path, [ROW, ROW], 3)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(ShardError, match=r"a\.idx"):
        Index(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ShardError, match=r"a\.idx"):
        Index(path)


@given(st.binary(max_size=200))
def test_a_foreign_file_is_no_index(tmp_path, content):
    path = tmp_path / "a.idx"
    path.write_bytes(content)
    with pytest.raises(ShardError, match="is not an index of sr_dist"):
        Index(path)


def test_an_index_of_another_version_says_so(tmp_path):
    path = tmp_path / "a.idx"
    path.write_bytes(b"SRDISTIX" + struct.pack("<I", 2) + bytes(20))
    with pytest.raises(ShardError, match=r"index version 2; this program reads version 1"):
        Index(path)


def test_a_missing_index_is_said(tmp_path):
    with pytest.raises(ShardError, match=r"a\.idx' cannot be read"):
        Index(tmp_path / "a.idx")


def test_names_of_indexes_and_member_headers():
    assert index_name("train-000001.tar") == "train-000001.idx"
    header = member_header("cats/ü.png", 1234)
    assert len(header) == 512
    assert header == member_header("cats/ü.png", 1234)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=100), st.integers(0, 8**11 - 1))
def test_member_headers_are_those_of_tarfile(name, size):
    info = tarfile.TarInfo(name)
    info.size = size
    try:
        expected = info.tobuf(format=tarfile.USTAR_FORMAT, encoding="utf-8")
    except ValueError:
        return  # too long for ustar
    assert member_header(name, size) == expected


# --------------------------------------------------------------------------------------------------------- the manifest

ENTRIES = (
    ShardEntry(name="a-000000.tar", bytes=2048, samples=3, sha256="0" * 64),
    ShardEntry(name="a-000001.tar", bytes=2048, samples=2, sha256="1" * 64),
)
MANIFEST = Manifest(format=1, samples=5, min_side=32, classes=("cat", "dög"), order={"seed": 0}, shards=ENTRIES)


def changed(manifest: Manifest, **update) -> Manifest:
    return Manifest(**{**manifest.model_dump(), **update})


def test_a_manifest_gives_itself_back(tmp_path):
    write_manifest(tmp_path, MANIFEST)
    assert read_manifest(tmp_path) == MANIFEST
    tree = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert tree["classes"] == ["cat", "dög"]
    assert "scale" not in tree
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_the_digest_changes_when_samples_or_their_order_change():
    same = changed(MANIFEST, source={"name": "elsewhere"}, tool={"pillow": "99"})
    others = [
        changed(MANIFEST, shards=ENTRIES[::-1]),
        changed(MANIFEST, shards=ENTRIES[:1], samples=3),
        changed(MANIFEST, order={"seed": 1}),
        changed(MANIFEST, shards=(ENTRIES[0].model_copy(update={"sha256": "2" * 64}), ENTRIES[1])),
        changed(MANIFEST, shards=(ENTRIES[0].model_copy(update={"samples": 2}), ENTRIES[1].model_copy(update={"samples": 3}))),
    ]
    assert same.digest == MANIFEST.digest
    assert len({MANIFEST.digest, *(other.digest for other in others)}) == 6


def test_some_shards_of_a_manifest_have_a_digest_of_their_own():
    whole = changed(MANIFEST)
    before = whole.digest
    assert whole.model_copy(update={"shards": ENTRIES[:1], "samples": 3}).digest != before


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ({"samples": 6}, "says 6 samples"),
        ({"samples": 0, "shards": []}, "says 0 samples"),
        ({"format": 2}, "is not a manifest of format 1"),
        ({"format": None}, "is not a manifest of format 1"),
        ({"min_side": "small"}, "min_side"),
        ({"shards": 3}, "shards"),
        ({"surprise": 1}, "surprise"),
        (
            {"shards": [{"name": "a.tar", "bytes": 1, "samples": 5, "sha": ""}]},
            r"shards\.0\.sha: unknown key; did you mean .*sha256",
        ),
        ({"order": None}, "order"),
    ],
)
def test_a_manifest_that_lies_is_refused(tmp_path, lie, message):
    tree = {**MANIFEST.model_dump(mode="json"), **lie}
    (tmp_path / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(ShardError, match=message) as caught:
        read_manifest(tmp_path, "data.train")
    assert str(caught.value).startswith("data.train: ")


@pytest.mark.parametrize("name", ["../a.tar", "/etc/a.tar", "sub/a.tar", "a.tar.gz", "a"])
def test_a_manifest_may_only_name_tars_of_its_own_folder(tmp_path, name):
    tree = MANIFEST.model_dump(mode="json")
    tree["shards"][0]["name"] = name
    (tmp_path / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(ShardError, match="is not a tar file of that folder"):
        read_manifest(tmp_path)


def test_a_manifest_that_names_a_shard_twice_is_refused(tmp_path):
    tree = {**MANIFEST.model_dump(mode="json"), "samples": 6}
    tree["shards"] = [tree["shards"][0]] * 2
    (tmp_path / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(ShardError, match=r"a-000000\.tar"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"3"])
def test_what_is_no_manifest_is_refused(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ShardError, match=r"manifest\.json"):
        read_manifest(tmp_path)


# -------------------------------------------------------------------------------------------------------- whole folders


def test_shards_open_as_a_folder(photo_shards):
    shards = open_shards(str(photo_shards))
    shards.check_sizes()
    assert [path.name for path in shards.paths()] == [f"photos-{number:06d}.tar" for number in range(3)]
    assert [len(shards.index(number)) for number in range(3)] == [8, 8, 8]
    assert shards.manifest.classes == ("boats", "cats", "dunes")


def test_a_brace_pattern_opens_some_shards_in_its_own_order(photo_shards):
    shards = open_shards(f"{photo_shards}/photos-{{000002,000000}}.tar")
    assert [path.name for path in shards.paths()] == ["photos-000002.tar", "photos-000000.tar"]
    assert shards.manifest.samples == 16
    assert shards.index(0)["key"].tolist() == open_shards(str(photo_shards)).index(2)["key"].tolist()
    assert len(open_shards(f"{photo_shards}/photos-{{000000..000002}}.tar").paths()) == 3
    assert len(open_shards(f"{photo_shards}/photos-000001.tar").paths()) == 1


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("/photos-{000000..000003}.tar", r"has no shard 'photos-000003\.tar'; did you mean"),
        ("/photos-{000000..0000", "the braces of .* do not close"),
        ("{,x}/photos-000000.tar", "names 2 folders"),
    ],
)
def test_a_wrong_brace_pattern_is_refused(photo_shards, pattern, message):
    with pytest.raises(UserError, match=message) as caught:
        open_shards(f"{photo_shards}{pattern}", "data.train")
    assert str(caught.value).startswith("data.train: ")


def test_a_missing_folder_names_its_neighbour(photo_shards):
    with pytest.raises(ShardError, match=r"^data\.train: no folder '.*'; did you mean '.*/photos'\?$"):
        open_shards(str(photo_shards) + "x", "data.train")


@pytest.fixture
def copy(photo_shards, tmp_path):
    return shutil.copytree(photo_shards, tmp_path / "copy")


def test_shards_of_another_size_than_the_manifest_says_are_refused(copy):
    with open(copy / "photos-000001.tar", "ab") as tar:
        tar.write(b"\0")
    with pytest.raises(ShardError, match=r"photos-000001\.tar' has \d+ bytes where the manifest says \d+"):
        open_shards(str(copy)).check_sizes()
    (copy / "photos-000001.tar").unlink()
    with pytest.raises(ShardError, match=r"photos-000001\.tar' of the manifest is missing"):
        open_shards(str(copy)).check_sizes()


def test_an_index_that_does_not_belong_to_its_shard_is_refused(copy):
    tree = json.loads((copy / "manifest.json").read_text())
    tree["shards"][0]["samples"], tree["shards"][1]["samples"] = 7, 9
    (copy / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(ShardError, match=r"photos-000000\.idx' lists 8 samples where the manifest says 7"):
        open_shards(str(copy)).index(0)
