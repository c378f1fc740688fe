"""Sets of features in one process: groups, intervals, KID. `tests/runs/test_evaluation.py` distributes them over ranks."""

import numpy as np
import pytest
import torch
from cleanfid.fid import kernel_distance
from test_frechet import naive, rows

from sr_dist.evaluation.distances import neighbours
from sr_dist.evaluation.distances.features import (
    Features,
    Unmeasurable,
    frechet_distances,
    halves,
    jackknifed,
    random_groups,
)
from sr_dist.evaluation.distances.frechet import from_rows
from sr_dist.evaluation.metrics import class_fid, fid, kid, precision, recall

NO_CLASSES = np.full(1000, -1)


def features(x, per_image=1):
    images = np.repeat(np.arange(len(x) // per_image), per_image)
    return Features(x.astype(np.float32), images, len(x) // per_image, torch.device("cpu"))


@pytest.mark.parametrize(("total", "count"), [(10, 3), (7, 10), (100, 2), (1, 2)])
def test_images_are_split_once_into_groups_of_about_equal_size(total, count):
    groups = random_groups(features(rows(total, 2, 1)), count)
    assert len(groups) == min(total, count)
    assert np.array_equal(np.sum(groups, 0), np.ones(total))
    assert max(group.sum() for group in groups) - min(group.sum() for group in groups) <= 1
    assert all(np.array_equal(a, b) for a, b in zip(groups, random_groups(features(rows(total, 2, 2)), count), strict=True))


def test_only_images_that_have_rows_are_in_groups():
    some = Features(rows(3, 2, 1), np.array([1, 4, 4]), 6, torch.device("cpu"))
    counts = np.sum(random_groups(some, 5), 0)
    assert counts.tolist() == [0, 1, 0, 0, 1, 0]


def test_halves_are_unlike_images_and_equally_many_rows():
    first, second = halves(features(rows(11, 3, 1)))
    assert len(first.rows) == len(second.rows) == 5
    assert not set(first.images) & set(second.images)
    first, second = halves(features(rows(21, 3, 1), per_image=3))
    assert len(first.rows) == len(second.rows) == 9
    with pytest.raises(Unmeasurable, match="fewer than 4"):
        halves(features(rows(3, 3, 1)))


@pytest.mark.parametrize(("n", "width"), [(20, 40), (200, 6)])
def test_the_distance_is_that_of_the_rows(n, width):
    a, b = rows(n, width, 1).astype(np.float32), rows(n, width, 2).astype(np.float32) + 0.3
    expected = naive(a.astype(np.float64), b.astype(np.float64))
    assert frechet_distances([(features(a), features(b))])[0] == pytest.approx(expected, rel=1e-5)
    estimate = jackknifed(features(a), features(b))
    assert (estimate.value, estimate.n) == (pytest.approx(expected, rel=1e-5), n)
    assert estimate.low < estimate.value < estimate.high


@pytest.mark.parametrize(("n", "width"), [(24, 30), (60, 4)])
def test_the_interval_is_a_jackknife_over_images_and_their_partners(n, width):
    a, b = rows(n, width, 1).astype(np.float32), (rows(n, width, 2) + 0.3).astype(np.float32)
    estimate, folds = jackknifed(features(a), features(b)), random_groups(features(a), 10)
    others = np.array([from_rows(a[~fold], b[~fold]) for fold in folds])
    error = np.sqrt(9 / 10 * ((others - others.mean()) ** 2).sum())
    assert estimate.standard_error == pytest.approx(error, rel=1e-5)
    assert estimate.high - estimate.value == pytest.approx(2.262157 * error, rel=1e-5)  # Student's t, 9 degrees of freedom


def test_the_standard_error_is_about_the_spread_over_other_images():
    draws = [jackknifed(*(features(rows(80, 3, seed) * s + s) for s, seed in ((1.0, i), (1.4, i + 1000)))) for i in range(60)]
    deviation = np.std([estimate.value for estimate in draws])
    assert 0.7 * deviation < np.mean([estimate.standard_error for estimate in draws]) < 1.4 * deviation


def test_two_images_have_a_distance_and_no_interval():
    estimate = jackknifed(features(rows(2, 3, 1)), features(rows(2, 3, 2)))
    assert estimate.value > 0
    assert estimate.low is estimate.high is None


def test_patches_of_an_image_are_left_out_together():
    a, b = rows(40, 3, 1), rows(40, 3, 2)
    estimate = jackknifed(features(a, per_image=10), features(b, per_image=10))
    keep = [np.arange(40) // 10 != i for i in range(4)]
    others = np.array([from_rows(a[k].astype(np.float32), b[k].astype(np.float32)) for k in keep])
    assert estimate.standard_error == pytest.approx(np.sqrt(3 / 4 * ((others - others.mean()) ** 2).sum()), rel=1e-4)


# ------------------------------------------------------------------------------------------------------------------ KID


def test_kid_by_hand():
    """Width 1, rows 0, 1 against 1, 2: kernels (xy + 1)^3. Within: 1, 27; across: 1, 1, 8, 27: 1 + 27 - 2 * 37 / 4."""
    value, variance = kid.squared_mmd(np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]]))
    assert value == pytest.approx(1 + 27 - 2 * (1 + 1 + 8 + 27) / 4)
    assert variance is None


@pytest.mark.parametrize("n", [5, 200])
def test_kid_is_clean_fids_up_to_1000_images(n):
    a, b = rows(n, 16, 1), rows(n, 16, 2) + 0.2
    assert kid.squared_mmd(a, b)[0] == pytest.approx(kernel_distance(a, b, num_subsets=1), rel=1e-9)
    assert kid.of_sets(features(a), features(b), NO_CLASSES).value == pytest.approx(
        kernel_distance(a, b, num_subsets=1), rel=1e-4
    )


def test_kids_standard_error_leaves_out_an_image_and_its_partner():
    a, b = rows(12, 4, 1), rows(12, 4, 2) + 0.2
    without = np.array([kid.squared_mmd(np.delete(a, i, 0), np.delete(b, i, 0))[0] for i in range(12)])
    assert kid.squared_mmd(a, b)[1] == pytest.approx(11 / 12 * ((without - without.mean()) ** 2).sum(), rel=1e-9)


def test_more_than_1000_images_are_averaged_in_blocks(monkeypatch):
    monkeypatch.setattr(kid, "BLOCK", 30)
    a, b = rows(80, 4, 1).astype(np.float32), (rows(80, 4, 2) + 0.2).astype(np.float32)
    estimate = kid.of_sets(features(a), features(b), NO_CLASSES)
    blocks = [kid.squared_mmd(a[block], b[block]) for block in random_groups(features(a), 3)]
    assert estimate.value == pytest.approx(np.mean([value for value, _ in blocks]))
    assert estimate.standard_error == pytest.approx(np.sqrt(sum(variance for _, variance in blocks)) / 3)
    assert estimate.n == 80


def test_kid_of_one_kind_is_nothing_on_average():
    values = [kid.squared_mmd(rows(30, 6, i), rows(30, 6, i + 500))[0] for i in range(200)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(200)
    assert min(values) < 0


# ------------------------------------------------------------------------------------------------ precision and recall


def test_precision_and_recall_by_hand():
    """HR at 0, 1, 2, 3, 10: radii 3, 2, 2, 3, 9. SR at 0, 4.5, 6.5, 30, 31: radii 30, 25.5, 24.5, 25.5, 26.5.

    0 and 4.5 are in balls of HR (of 10: from 1 on), 6.5 too; 30 and 31 are in none. All of HR is in the ball of 0.
    """
    hr, sr = (np.array([values]).T for values in ([0.0, 1, 2, 3, 10], [0, 4.5, 6.5, 30, 31]))
    estimate = precision.of_sets(features(sr), features(hr), NO_CLASSES)
    assert (estimate.value, estimate.n) == (3 / 5, 5) and estimate.low < 3 / 5 < estimate.high
    assert recall.of_sets(features(sr), features(hr), NO_CLASSES).value == 1
    assert precision.of_sets(features(hr), features(sr), NO_CLASSES).value == 1  # the two change places


@pytest.mark.parametrize("block", [2**24, 7 * 40])
def test_precision_is_the_papers_formula(monkeypatch, block):
    monkeypatch.setattr(neighbours, "AT_ONCE", block)
    hr, sr = rows(40, 3, 1).astype(np.float32), (rows(40, 3, 2) * 1.5 + 0.5).astype(np.float32)
    radius = [sorted(np.linalg.norm(each - other) for other in hr)[3] for each in hr]
    inside = [any(np.linalg.norm(each - other) <= r for other, r in zip(hr, radius, strict=True)) for each in sr]
    assert 0 < sum(inside) < 40
    assert precision.of_sets(features(sr), features(hr), NO_CLASSES).value == sum(inside) / 40


@pytest.mark.parametrize("offset", [0, 1000])
def test_a_set_lies_among_itself_even_where_all_rows_are_equal(offset):
    for hr in (rows(20, 6, 1) + offset, np.full((20, 6), offset + 0.3)):
        assert precision.of_sets(features(hr), features(hr), NO_CLASSES).value == 1
        assert recall.of_sets(features(hr), features(hr), NO_CLASSES).value == 1


def test_the_radii_of_hr_are_computed_once_for_all_methods():
    neighbours.radii.cache_clear()
    hr, methods = features(rows(20, 4, 1)), [features(rows(20, 4, number)) for number in range(2, 7)]
    for method in methods:
        precision.of_sets(method, hr, NO_CLASSES)
        recall.of_sets(method, hr, NO_CLASSES)
    assert neighbours.radii.cache_info().misses == 1 + len(methods)


def test_too_few_images_have_no_precision():
    few = features(rows(3, 4, 1))
    with pytest.raises(Unmeasurable, match="more than 3 images"):
        recall.of_sets(few, few, NO_CLASSES)
    with pytest.raises(Unmeasurable, match="more than 3 images"):
        precision.floor(features(rows(7, 4, 1)), NO_CLASSES)  # 3 in each half
    assert precision.floor(features(np.ones((8, 4))), NO_CLASSES) == 1


# ---------------------------------------------------------------------------------------------------------- per class


def test_the_distance_within_classes_is_their_mean():
    a, b, labels = rows(30, 4, 1).astype(np.float32), rows(30, 4, 2).astype(np.float32), np.arange(30) % 3
    estimate = class_fid.of_sets(features(a), features(b), labels)
    assert estimate.value == pytest.approx(np.mean([from_rows(a[labels == c], b[labels == c]) for c in range(3)]), rel=1e-6)
    assert estimate.n == 10
    assert class_fid.floor(features(b), labels) > 0


def test_images_without_classes_and_classes_of_one_image_say_so():
    some = features(rows(10, 4, 1))
    with pytest.raises(Unmeasurable, match="no classes"):
        class_fid.of_sets(some, some, NO_CLASSES[:10])
    with pytest.raises(Unmeasurable, match="class 7 has fewer than 2 images"):
        class_fid.of_sets(some, some, np.array([1] * 9 + [7]))


def test_the_floor_stands_between_halves_of_hr():
    hr = features(rows(50, 4, 1))
    first, second = halves(hr)
    assert fid.floor(hr, NO_CLASSES) == pytest.approx(from_rows(first.rows, second.rows), rel=1e-6)
    assert kid.floor(hr, NO_CLASSES) == pytest.approx(kid.squared_mmd(first.rows, second.rows)[0])
