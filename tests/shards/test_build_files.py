"""The files of an unfinished build have a format number."""

from __future__ import annotations

import json
import shutil

import pytest
from made_shards import bytes_of

from shards import build
from shards.build_files import PLAN_FILE
from sr_dist.core.errors import UserError
from sr_dist.core.version import __version__

OPTIONS = {"per_shard": "8"}


@pytest.fixture
def begun(photos, tmp_path):
    """A build of `photos` with one of its three shards finished."""
    out = tmp_path / "photos"
    build.build("class_folders", str(photos), out, {**OPTIONS, "task": "0/3"})
    return out


def change(path, **changes):
    """None removes a key."""
    tree = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in tree.items() if value is not None}))


def test_the_files_of_an_unfinished_build_say_their_format_and_who_wrote_them(begun):
    plan, part = (json.loads((begun / name).read_text()) for name in (PLAN_FILE, "photos-000000.part"))
    assert (plan["format"], plan["tool"]["sr_dist"]) == (1, __version__)
    assert (part["format"], part["sr_dist"]) == (1, __version__)


def test_a_build_that_version_0_1_0_began_is_continued(begun, photos, photo_shards):
    """Its files have no format number. What it has finished is not built again."""
    change(begun / PLAN_FILE, format=None)
    change(begun / "photos-000000.part", format=None, sr_dist=None)
    before = (begun / "photos-000000.tar").stat().st_mtime_ns
    build.build("class_folders", str(photos), begun, OPTIONS)
    assert bytes_of(begun) == bytes_of(photo_shards)
    assert (begun / "photos-000000.tar").stat().st_mtime_ns == before


@pytest.mark.parametrize("merged", [False, True])
def test_a_plan_of_an_unknown_format_is_refused_with_the_version_that_wrote_it(begun, photos, photo_shards, merged):
    change(begun / PLAN_FILE, format=2, tool={"sr_dist": "7.8.9"})
    if merged:  # killed while it tidied up
        shutil.copy(photo_shards / "manifest.json", begun)
    before = bytes_of(begun)
    with pytest.raises(UserError, match=r"^OUT: '.*\.build\.json' has format 2, written by sr_dist 7\.8\.9; "):
        build.build("class_folders", str(photos), begun, {**OPTIONS, "task": "1/3"})
    assert bytes_of(begun) == before


def test_a_part_file_of_an_unknown_format_is_refused_with_the_version_that_wrote_it(begun, photos):
    change(begun / "photos-000000.part", format=2, sr_dist="7.8.9", entry=None)
    before = bytes_of(begun)
    with pytest.raises(UserError, match=r"^OUT: '.*photos-000000\.part' has format 2, written by sr_dist 7\.8\.9; "):
        build.build("class_folders", str(photos), begun, {**OPTIONS, "task": "0/3"})
    assert bytes_of(begun) == before


@pytest.mark.parametrize("text", ["", "[]", '{"tool": 3}', "\xff", "[" * 100_000], ids=lambda text: text[:20])
def test_a_damaged_plan_is_refused_in_one_line(begun, photos, text):
    (begun / PLAN_FILE).write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"^OUT: '.*\.build\.json' cannot be read: .*; remove the folder"):
        build.build("class_folders", str(photos), begun, OPTIONS)


@pytest.mark.parametrize("text", ["", "[]", "3", '{"entry": 3}', '{"format": 1}', "[" * 100_000], ids=lambda text: text[:20])
def test_a_shard_with_a_damaged_part_file_is_built_again(begun, photos, photo_shards, text):
    (begun / "photos-000000.part").write_text(text)
    build.build("class_folders", str(photos), begun, OPTIONS)
    assert bytes_of(begun) == bytes_of(photo_shards)
