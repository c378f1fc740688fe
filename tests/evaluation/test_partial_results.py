"""What a killed evaluation leaves, and what one evaluation leaves for the next."""

import json

import numpy as np
import pytest
import torch

from sr_dist.core.errors import UserError
from sr_dist.evaluation.distances.features import Features
from sr_dist.evaluation.distances.reference_cache import References, refuse_unlike
from sr_dist.evaluation.partial_results import Parts, identity

FACTS = {"rows": [{"image": "ä", "psnr_y": 31.25, "ssim_y": None}], "labels": [-1]}
ABOUT = {"images": "abc", "extractor": "inception", "resize": "clean"}


@pytest.mark.parametrize("folder", [None, "partial/1234"])
def test_a_part_comes_back_as_it_was_put(tmp_path, folder):
    parts = Parts(tmp_path / folder if folder else None)
    rows = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    parts.put(4, FACTS, {"whole/0": rows, "patches/0": np.zeros((0, 0), np.float32)})
    assert parts.facts(4) == FACTS
    assert np.array_equal(parts.array(4, "whole/0"), rows)
    assert parts.array(4, "patches/0").shape == (0, 0)
    assert parts.missing(range(6)) == [0, 1, 2, 3, 5]


@pytest.mark.parametrize("folder", [None, "partial/1234"])
def test_a_part_without_what_is_needed_is_to_be_done_again(tmp_path, folder):
    parts = Parts(tmp_path / folder if folder else None)
    parts.put(0, FACTS, {"whole/0": np.ones((2, 2)), "whole/1": np.ones((2, 2))})
    parts.put(1, FACTS, {"whole/1": np.ones((2, 2))})
    assert parts.missing(range(2), ["whole/1"]) == []
    assert parts.missing(range(2), ["whole/0", "whole/1"]) == [1]
    parts.put(1, FACTS, {"whole/0": np.ones((2, 2)), "whole/1": np.ones((2, 2))})
    assert parts.missing(range(2), ["whole/0", "whole/1"]) == []


def test_parts_on_disk_are_found_by_whoever_comes_next_and_torn_ones_are_not(tmp_path):
    folder = tmp_path / "partial" / "1234"
    for number in (0, 1, 2):
        Parts(folder).put(number, FACTS, {"whole/0": np.ones((4, 4))})
    torn = folder / "0000001.npz"
    torn.write_bytes(torn.read_bytes()[:-30])
    damaged = bytearray((folder / "0000002.npz").read_bytes())
    damaged[100] ^= 1
    (folder / "0000002.npz").write_bytes(damaged)
    assert Parts(folder).missing(range(3)) == [1, 2]


def test_what_is_removed_takes_along_only_folders_that_are_empty(tmp_path):
    parts = Parts(tmp_path / "out" / ".partial" / "1234")
    parts.put(0, FACTS, {})
    parts.remove()
    assert list(tmp_path.iterdir()) == []
    parts = Parts(tmp_path / "out" / ".partial" / "1234")
    (tmp_path / "out" / "report.json").write_text("{}")
    parts.remove()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.json"]


def test_batches_stay_when_a_folder_is_left_and_an_empty_one_does_not(tmp_path):
    Parts(tmp_path / "out" / ".partial" / "1234").leave()
    assert list(tmp_path.iterdir()) == []
    parts = Parts(tmp_path / "out" / ".partial" / "1234")
    parts.put(0, FACTS, {})
    parts.leave()
    assert Parts(parts.folder).missing(range(2)) == [1]


def test_an_identity_is_that_of_the_content():
    assert identity({"a": 1, "b": [2]}) == identity({"b": [2], "a": 1})
    assert identity({"a": 1}) != identity({"a": 2})


# ----------------------------------------------------------------------------------------------------------- references


def features():
    rows = np.random.default_rng(1).normal(size=(9, 4)).astype(np.float32)
    return Features(rows, np.arange(9) // 3, 3, torch.device("cpu"))


def test_features_are_kept_with_their_moments_and_shared_out_again(tmp_path):
    kept = References(tmp_path / "cache", ABOUT)
    assert kept.load("whole") is None
    kept.keep("whole", features())
    found = References(tmp_path / "cache", ABOUT).load("whole")
    assert found is not None
    np.testing.assert_array_equal(found.rows, features().rows)
    np.testing.assert_allclose(found.moments.covariance, np.cov(features().rows.astype(np.float64), rowvar=False), rtol=1e-12)
    share = found.share(np.array([2]), 3, torch.device("cpu"))
    assert np.array_equal(share.rows, features().rows[6:])
    assert share.of(np.array([True, False, False])).rows.shape == (0, 4)
    assert share.of(np.array([True, False, True])).moments().n == 3  # a part of it is not all of it


def test_other_images_extractors_and_views_are_other_references(tmp_path):
    References(tmp_path, ABOUT).keep("whole", features())
    assert References(tmp_path, ABOUT).load("patches") is None
    for key in ABOUT:
        assert References(tmp_path, {**ABOUT, key: "other"}).load("whole") is None


def test_a_reference_says_of_itself_what_it_is(tmp_path):
    References(tmp_path, ABOUT).keep("whole", features())
    (path,) = tmp_path.iterdir()
    with np.load(path, allow_pickle=False) as arrays:
        header = json.loads(arrays["header"].tobytes())
        assert int(arrays["n"]) == 9
    assert header.items() >= {**ABOUT, "features_of": "whole"}.items()
    assert header["versions"].keys() == {"torch", "clean-fid", "pillow", "numpy"}


def test_features_that_are_not_what_they_should_be_are_refused(tmp_path):
    References(tmp_path, ABOUT).keep("whole", features())
    (path,) = tmp_path.iterdir()
    wanted = References(tmp_path, {**ABOUT, "resize": "legacy_pytorch"})
    path.rename(wanted._path("whole"))
    with pytest.raises(UserError, match=r"^cache: '.*npz' has other features: resize is clean, not legacy_pytorch; remove it$"):
        wanted.load("whole")
    refuse_unlike({"n": 1}, {"n": 1}, path)


def test_a_damaged_reference_is_made_anew(tmp_path):
    kept = References(tmp_path, ABOUT)
    kept.keep("whole", features())
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:200])
    assert kept.load("whole") is None
    kept.keep("whole", features())
    assert kept.load("whole") is not None


def test_a_cache_that_cannot_be_written_ends_no_evaluation(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    kept = References(tmp_path / "file" / "references", ABOUT)
    kept.keep("whole", features())
    assert f"cache: features of HR are not kept in '{kept.folder}': " in capsys.readouterr().out
    assert kept.load("whole") is None
