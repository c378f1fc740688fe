from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr_dist.data.order import CROP, DEGRADE, SAMPLES, SHARDS, TURN, Order, crop_place, draw, micro_batch, permutation, share

sizes = st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(any)
seeds = st.integers(-(2**63), 2**64 - 1)
windows = st.integers(1, 40)


# --------------------------------------------------------------------------------------------------------- permutations


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((5, 0, 0, SHARDS, 0), [0, 2, 1, 4, 3]),
        ((8, 1, 2, SAMPLES, 3), [4, 3, 6, 7, 1, 2, 5, 0]),
        ((10, 2024, 7, SAMPLES, 0), [8, 2, 9, 6, 3, 1, 7, 0, 5, 4]),
        ((6, 2**63 + 5, 1, SHARDS, 0), [3, 4, 2, 1, 0, 5]),
        ((6, -1, 0, SAMPLES, 0), [2, 5, 4, 1, 3, 0]),
    ],
)
def test_permutations_are_frozen(arguments, expected):
    """Runs that were begun under another numpy must be able to continue: these numbers never change."""
    assert permutation(*arguments).tolist() == expected


def test_the_order_is_frozen():
    order = Order([3, 0, 4, 2], seed=7, window=4)
    first, second = [3, 8, 4, 7, 5, 0, 6, 1, 2], [3, 7, 8, 4, 0, 1, 5, 6, 2]
    assert order(range(18)) == [(0, sample) for sample in first] + [(1, sample) for sample in second]


@given(st.integers(0, 200), seeds, st.integers(0, 1000), st.integers(0, 4), st.integers(0, 1000))
def test_a_permutation_holds_everything_once(size, seed, epoch, use, part):
    assert sorted(permutation(size, seed, epoch, use, part).tolist()) == list(range(size))


@given(seeds, st.integers(0, 1000), st.integers(0, 50))
def test_every_argument_of_a_permutation_matters(seed, epoch, part):
    others = [(seed + 1, epoch, 0, part), (seed, epoch + 1, 0, part), (seed, epoch, 1, part), (seed, epoch, 0, part + 1)]
    here = permutation(40, seed, epoch, 0, part).tolist()
    assert all(permutation(40, *other).tolist() != here for other in others)


# ------------------------------------------------------------------------------------------------------------ the order


@given(sizes, seeds, windows, st.integers(0, 5))
def test_every_epoch_holds_every_sample_once(sizes, seed, window, epoch):
    order = Order(sizes, seed, window)
    seen = order(range(epoch * sum(sizes), (epoch + 1) * sum(sizes)))
    assert {number for number, _ in seen} == {epoch}
    assert sorted(sample for _, sample in seen) == list(range(sum(sizes)))


@given(sizes, seeds, windows)
def test_a_window_holds_whole_shards_that_follow_each_other(sizes, seed, window):
    """What is mixed together comes from as few shards as fit, in the epoch's order of shards."""
    order = Order(sizes, seed, window)
    shards = [order.locate(sample)[0] for _, sample in order(range(sum(sizes)))]
    by_window = [set(shards[low : low + window]) for low in range(0, len(shards), window)]
    expected = [shard for shard in permutation(len(sizes), seed, 0, SHARDS).tolist() for _ in range(sizes[shard])]
    assert by_window == [set(expected[low : low + window]) for low in range(0, len(expected), window)]


@given(sizes, seeds, windows, st.lists(st.integers(0, 500), max_size=20))
def test_the_order_has_no_history(sizes, seed, window, positions):
    """Whatever was asked before, and in whichever process: the same answer."""
    used = Order(sizes, seed, window)
    answers = used(positions)
    assert used(positions[::-1]) == answers[::-1]
    assert pickle.loads(pickle.dumps(used))(positions) == answers
    assert [Order(sizes, seed, window)([position])[0] for position in positions] == answers


@given(sizes)
def test_a_sample_is_found_in_its_shard(sizes):
    order = Order(sizes, 0)
    expected = [(shard, row) for shard, size in enumerate(sizes) for row in range(size)]
    assert [order.locate(sample) for sample in range(sum(sizes))] == expected


def test_two_epochs_and_two_seeds_differ():
    order = Order([50, 50], 0, window=30)
    first, second = ([sample for _, sample in order(range(low, low + 100))] for low in (0, 100))
    assert first != second
    assert first != [sample for _, sample in Order([50, 50], 1, window=30)(range(100))]


# ------------------------------------------------------------------------------------------- ranks and micro-batches


@given(st.integers(0, 200), st.integers(1, 20))
def test_shares_are_a_partition_into_even_consecutive_parts(total, parts):
    shares = [share(total, parts, part) for part in range(parts)]
    assert [thing for part in shares for thing in part] == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(st.integers(1, 64), st.integers(1, 6), st.integers(1, 4))
def test_ranks_and_micro_batches_take_every_place_once(batch, ranks, accumulate):
    parts = [micro_batch(batch, ranks, accumulate, rank, micro) for rank in range(ranks) for micro in range(accumulate)]
    assert sorted(place for part in parts for place in part) == list(range(batch))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(st.integers(1, 64), st.integers(1, 6), st.integers(1, 4))
def test_a_micro_batch_of_all_ranks_together_is_one_stretch_of_the_batch(batch, ranks, accumulate):
    for micro in range(accumulate):
        places = [place for rank in range(ranks) for place in micro_batch(batch, ranks, accumulate, rank, micro)]
        assert places == list(share(batch, accumulate, micro))


@given(sizes, seeds, windows, st.integers(1, 12), st.integers(1, 4), st.integers(1, 3))
def test_training_goes_through_epochs_exactly_once_on_any_number_of_ranks(sizes, seed, window, batch, ranks, accumulate):
    """Two epochs of steps: the samples of a step are the same for every world, and each comes twice in all."""
    total = sum(sizes)
    steps = -(-2 * total // batch)
    order = Order(sizes, seed, window)
    trained: list[tuple[int, int]] = []
    for step in range(steps):
        taken = sorted(
            step * batch + place
            for rank in range(ranks)
            for micro in range(accumulate)
            for place in micro_batch(batch, ranks, accumulate, rank, micro)
        )
        assert taken == list(range(step * batch, (step + 1) * batch))
        trained += order(taken)
    counts = Counter(sample for epoch, sample in trained if epoch < 2)
    assert counts == dict.fromkeys(range(total), 2)


# ------------------------------------------------------------------------------------------------------- random numbers


def splitmix64(state: int) -> int:
    """Sebastiano Vigna's generator, one step: with numpy's wrapping integers, not ours."""
    with np.errstate(over="ignore"):
        z = np.uint64(state) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return int(z ^ (z >> np.uint64(31)))


def test_the_reference_gives_the_published_values():
    assert splitmix64(0) == 0xE220A8397B1DCDAF
    assert splitmix64(0x9E3779B97F4A7C15) == 0x6E789E6AA1B965F4


@given(seeds, st.integers(0, 2**32), st.integers(0, 2**40), st.integers(0, 4))
def test_draw_is_splitmix64_over_its_four_numbers(seed, epoch, sample, use):
    state = 0
    for number in (seed % 2**64, epoch, sample, use):
        state = splitmix64(state ^ number)
    assert draw(seed, epoch, sample, use) == state


def test_draws_are_frozen():
    assert draw(0, 0, 0, 0) == 0x2130748AAAC80268
    assert draw(1, 2, 3, 4) == 0xD55CCD4AEB3CCAFB
    assert draw(2024, 7, 123456789, TURN) == 0xBA7F79E660534998


def test_draws_differ_per_use_epoch_sample_and_seed():
    uses = (SHARDS, SAMPLES, CROP, TURN, DEGRADE)
    everything = {draw(s, e, i, use) for s in range(3) for e in range(5) for i in range(100) for use in uses}
    assert len(everything) == 3 * 5 * 100 * len(uses)


@pytest.mark.parametrize("use", [CROP, TURN])
def test_every_bit_of_a_draw_is_set_half_of_the_time(use):
    draws = np.array([draw(0, epoch, sample, use) for epoch in range(4) for sample in range(2000)], np.uint64)
    shares = [float((draws >> np.uint64(bit) & np.uint64(1)).mean()) for bit in range(64)]
    assert max(abs(part - 0.5) for part in shares) < 5 * 0.5 / np.sqrt(8000)  # five standard deviations


@given(
    st.integers(0, 2**64 - 1), st.integers(1, 8), st.integers(1, 20), st.integers(0, 40), st.integers(0, 40)
)  # fmt: skip
def test_a_crop_lies_inside_and_on_the_grid(bits, grid, cells, more_rows, more_columns):
    crop = grid * cells
    top, left = crop_place(bits, crop + more_rows, crop + more_columns, crop, grid)
    assert top % grid == 0
    assert left % grid == 0
    assert 0 <= top <= more_rows
    assert 0 <= left <= more_columns


def test_crops_reach_every_place_about_equally():
    """9 x 5 places of an 8-pixel crop on a grid of two; 9,000 draws are 200 each, give or take 5 x 14."""
    counts = Counter(crop_place(draw(0, 0, sample, CROP), 24, 16, 8, 2) for sample in range(9000))
    assert set(counts) == {(top, left) for top in range(0, 17, 2) for left in range(0, 9, 2)}
    assert max(abs(count - 200) for count in counts.values()) < 70
