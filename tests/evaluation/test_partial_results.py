"""The partial results of a killed evaluation, and the cache of HR features."""

import json

import numpy as np
import pytest
import torch

from sr_dist.core.errors import UserError
from sr_dist.evaluation.distances.features import Features
from sr_dist.evaluation.distances.reference_cache import References, refuse_other_features
from sr_dist.evaluation.partial_results import PartialResults, identity

FACTS = {"rows": [{"image": "ä", "psnr_y": 31.25, "ssim_y": None}], "labels": [-1]}
ABOUT = {"images": "abc", "extractor": "inception", "resize": "clean"}


@pytest.mark.parametrize("folder", [None, "partial/1234"])
def test_a_batch_is_read_as_it_was_written(tmp_path, folder):
    results = PartialResults(tmp_path / folder if folder else None)
    rows = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    results.put(4, FACTS, {"whole/0": rows, "patches/0": np.zeros((0, 0), np.float32)})
    assert results.facts(4) == FACTS
    assert np.array_equal(results.array(4, "whole/0"), rows)
    assert results.array(4, "patches/0").shape == (0, 0)
    assert results.missing(range(6)) == [0, 1, 2, 3, 5]


@pytest.mark.parametrize("folder", [None, "partial/1234"])
def test_a_batch_without_the_needed_arrays_is_missing(tmp_path, folder):
    results = PartialResults(tmp_path / folder if folder else None)
    results.put(0, FACTS, {"whole/0": np.ones((2, 2)), "whole/1": np.ones((2, 2))})
    results.put(1, FACTS, {"whole/1": np.ones((2, 2))})
    assert results.missing(range(2), ["whole/1"]) == []
    assert results.missing(range(2), ["whole/0", "whole/1"]) == [1]
    results.put(1, FACTS, {"whole/0": np.ones((2, 2)), "whole/1": np.ones((2, 2))})
    assert results.missing(range(2), ["whole/0", "whole/1"]) == []


def test_batches_on_disk_are_read_by_the_next_process_and_damaged_ones_are_missing(tmp_path):
    folder = tmp_path / "partial" / "1234"
    for number in (0, 1, 2):
        PartialResults(folder).put(number, FACTS, {"whole/0": np.ones((4, 4))})
    torn = folder / "0000001.npz"
    torn.write_bytes(torn.read_bytes()[:-30])
    damaged = bytearray((folder / "0000002.npz").read_bytes())
    damaged[100] ^= 1
    (folder / "0000002.npz").write_bytes(damaged)
    assert PartialResults(folder).missing(range(3)) == [1, 2]


def rewritten(path, name, **changes):
    """Changes keys of a file's JSON header; None removes a key."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    header = json.loads(arrays[name].tobytes()) | changes
    header = {key: value for key, value in header.items() if value is not None}
    np.savez(path, **{**arrays, name: np.frombuffer(json.dumps(header).encode(), np.uint8)})


def test_results_of_an_unknown_format_are_refused_and_those_of_0_1_are_read(tmp_path):
    PartialResults(tmp_path).put(0, FACTS, {})
    rewritten(tmp_path / "0000000.npz", "facts", format=2, sr_dist="9.0.0")
    with pytest.raises(UserError, match=r"^out: '.*0000000\.npz' has format 2, written by sr_dist 9\.0\.0; .* reads format 1;"):
        PartialResults(tmp_path).missing([0])
    rewritten(tmp_path / "0000000.npz", "facts", format=None, sr_dist=None)
    assert PartialResults(tmp_path).missing([0]) == [] and PartialResults(tmp_path).facts(0) == FACTS


def test_removing_the_results_removes_only_empty_folders_above(tmp_path):
    results = PartialResults(tmp_path / "out" / ".partial" / "1234")
    results.put(0, FACTS, {})
    results.remove()
    assert list(tmp_path.iterdir()) == []
    results = PartialResults(tmp_path / "out" / ".partial" / "1234")
    (tmp_path / "out" / "report.json").write_text("{}")
    results.remove()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.json"]


def test_an_empty_folder_is_removed_and_one_with_batches_is_not(tmp_path):
    PartialResults(tmp_path / "out" / ".partial" / "1234").remove_empty_folders()
    assert list(tmp_path.iterdir()) == []
    results = PartialResults(tmp_path / "out" / ".partial" / "1234")
    results.put(0, FACTS, {})
    results.remove_empty_folders()
    assert PartialResults(results.folder).missing(range(2)) == [1]


def test_an_identity_is_that_of_the_content():
    assert identity({"a": 1, "b": [2]}) == identity({"b": [2], "a": 1})
    assert identity({"a": 1}) != identity({"a": 2})


# ----------------------------------------------------------------------------------------------------------- references


def features():
    rows = np.random.default_rng(1).normal(size=(9, 4)).astype(np.float32)
    return Features(rows, np.arange(9) // 3, 3, torch.device("cpu"))


def test_features_are_cached_with_their_moments_and_distributed_again(tmp_path):
    references = References(tmp_path / "cache", ABOUT)
    assert references.load("whole") is None
    references.store("whole", features())
    reference = References(tmp_path / "cache", ABOUT).load("whole")
    assert reference is not None
    np.testing.assert_array_equal(reference.rows, features().rows)
    np.testing.assert_allclose(reference.moments.covariance, np.cov(features().rows.astype(np.float64), rowvar=False), rtol=1e-12)
    rows_of_image_2 = reference.features(np.array([2]), 3, torch.device("cpu"))
    assert np.array_equal(rows_of_image_2.rows, features().rows[6:])
    assert rows_of_image_2.of(np.array([True, False, False])).rows.shape == (0, 4)
    assert rows_of_image_2.of(np.array([True, False, True])).moments().n == 3  # a part of it is not all of it


def test_other_images_extractors_and_views_are_other_references(tmp_path):
    References(tmp_path, ABOUT).store("whole", features())
    assert References(tmp_path, ABOUT).load("patches") is None
    for key in ABOUT:
        assert References(tmp_path, {**ABOUT, key: "other"}).load("whole") is None


def test_a_reference_has_a_header_with_its_facts(tmp_path):
    References(tmp_path, ABOUT).store("whole", features())
    (path,) = tmp_path.iterdir()
    with np.load(path, allow_pickle=False) as arrays:
        header = json.loads(arrays["header"].tobytes())
        assert int(arrays["n"]) == 9
    assert header.items() >= {**ABOUT, "features_of": "whole"}.items()
    assert header["versions"].keys() == {"torch", "clean-fid", "pillow", "numpy"}
    assert header["format"] == 1


def test_a_reference_with_another_header_is_refused(tmp_path):
    References(tmp_path, ABOUT).store("whole", features())
    (path,) = tmp_path.iterdir()
    expected = References(tmp_path, {**ABOUT, "resize": "legacy_pytorch"})
    path.rename(expected._path("whole"))
    with pytest.raises(UserError, match=r"^cache: '.*npz' has other features: resize is clean, not legacy_pytorch; remove it$"):
        expected.load("whole")
    refuse_other_features({"n": 1}, {"n": 1}, path)


def test_a_reference_of_an_unknown_format_is_refused_and_one_of_0_1_is_read(tmp_path):
    references = References(tmp_path, ABOUT)
    references.store("whole", features())
    (path,) = tmp_path.iterdir()
    rewritten(path, "header", format=2, sr_dist="9.0.0")
    with pytest.raises(UserError, match=r"^cache: '.*npz' has format 2, written by sr_dist 9\.0\.0; .* reads format 1;"):
        references.load("whole")
    rewritten(path, "header", format=None, sr_dist=None)
    assert references.load("whole") is not None


def test_a_damaged_reference_is_computed_again(tmp_path):
    references = References(tmp_path, ABOUT)
    references.store("whole", features())
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:200])
    assert references.load("whole") is None
    references.store("whole", features())
    assert references.load("whole") is not None


def test_a_cache_that_cannot_be_written_ends_no_evaluation(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    references = References(tmp_path / "file" / "references", ABOUT)
    references.store("whole", features())
    assert f"cache: cannot write features of HR to '{references.folder}': " in capsys.readouterr().out
    assert references.load("whole") is None
