from __future__ import annotations

import itertools
import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr_dist.data.order import (
    CROP,
    DEGRADE,
    SAMPLES,
    SHARDS,
    TURN,
    Mix,
    Order,
    crop_corner,
    draw,
    micro_batch,
    permutation,
    seed_of,
    split_range,
)
from sr_dist.recipe.sections import whole_weights

sizes = st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(any)
seeds = st.integers(-(2**63), 2**64 - 1)
windows = st.integers(1, 40)


def samples_at(order, positions):
    """(epoch, sample) of each position."""
    return [order.at(position) for position in positions]


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
    """A run must resume under another version of numpy, so these numbers never change."""
    assert permutation(*arguments).tolist() == expected


def test_the_order_is_frozen():
    order = Order([3, 0, 4, 2], seed=7, window=4)
    first, second = [3, 8, 4, 7, 5, 0, 6, 1, 2], [3, 7, 8, 4, 0, 1, 5, 6, 2]
    assert samples_at(order, range(18)) == [(0, sample) for sample in first] + [(1, sample) for sample in second]


@given(st.integers(0, 200), seeds, st.integers(0, 1000), st.integers(0, 4), st.integers(0, 1000))
def test_a_permutation_contains_every_number_once(size, seed, epoch, use, window):
    assert sorted(permutation(size, seed, epoch, use, window).tolist()) == list(range(size))


@given(seeds, st.integers(0, 1000), st.integers(0, 50))
def test_every_argument_of_a_permutation_matters(seed, epoch, window):
    others = [(seed + 1, epoch, 0, window), (seed, epoch + 1, 0, window), (seed, epoch, 1, window), (seed, epoch, 0, window + 1)]
    expected = permutation(40, seed, epoch, 0, window).tolist()
    assert all(permutation(40, *other).tolist() != expected for other in others)


# ------------------------------------------------------------------------------------------------------------ the order


@given(sizes, seeds, windows, st.integers(0, 5))
def test_every_epoch_contains_every_sample_once(sizes, seed, window, epoch):
    order = Order(sizes, seed, window)
    samples = samples_at(order, range(epoch * sum(sizes), (epoch + 1) * sum(sizes)))
    assert {number for number, _ in samples} == {epoch}
    assert sorted(sample for _, sample in samples) == list(range(sum(sizes)))


@given(sizes, seeds, windows)
def test_a_window_contains_consecutive_whole_shards(sizes, seed, window):
    """The samples of a window come from as few shards as possible, in the epoch's order of shards."""
    order = Order(sizes, seed, window)
    shards = [order.locate(sample)[0] for _, sample in samples_at(order, range(sum(sizes)))]
    by_window = [set(shards[low : low + window]) for low in range(0, len(shards), window)]
    expected = [shard for shard in permutation(len(sizes), seed, 0, SHARDS).tolist() for _ in range(sizes[shard])]
    assert by_window == [set(expected[low : low + window]) for low in range(0, len(expected), window)]


@given(sizes, seeds, windows, st.lists(st.integers(0, 500), max_size=20))
def test_the_order_has_no_history(sizes, seed, window, positions):
    """The result depends neither on earlier calls nor on the process."""
    used = Order(sizes, seed, window)
    samples = samples_at(used, positions)
    assert samples_at(used, positions[::-1]) == samples[::-1]
    assert samples_at(pickle.loads(pickle.dumps(used)), positions) == samples
    assert [Order(sizes, seed, window).at(position) for position in positions] == samples


@given(sizes)
def test_a_sample_is_located_in_its_shard(sizes):
    order = Order(sizes, 0, 8192)
    expected = [(shard, row) for shard, size in enumerate(sizes) for row in range(size)]
    assert [order.locate(sample) for sample in range(sum(sizes))] == expected


def test_two_epochs_and_two_seeds_differ():
    order = Order([50, 50], 0, window=30)
    first, second = ([sample for _, sample in samples_at(order, range(low, low + 100))] for low in (0, 100))
    assert first != second
    assert first != [sample for _, sample in samples_at(Order([50, 50], 1, window=30), range(100))]


# ------------------------------------------------------------------------------------------- ranks and micro-batches


@given(st.integers(0, 200), st.integers(1, 20))
def test_a_range_is_split_into_even_consecutive_pieces(total, num_pieces):
    pieces = [split_range(total, num_pieces, piece) for piece in range(num_pieces)]
    assert [number for piece in pieces for number in piece] == list(range(total))
    assert max(map(len, pieces)) - min(map(len, pieces)) <= 1


@given(st.integers(1, 64), st.integers(1, 6), st.integers(1, 4))
def test_ranks_and_micro_batches_take_every_index_once(batch, ranks, accumulate):
    pieces = [micro_batch(batch, ranks, accumulate, rank, micro) for rank in range(ranks) for micro in range(accumulate)]
    assert sorted(index for piece in pieces for index in piece) == list(range(batch))
    assert max(map(len, pieces)) - min(map(len, pieces)) <= 1


@given(st.integers(1, 64), st.integers(1, 6), st.integers(1, 4))
def test_a_micro_batch_of_all_ranks_together_is_one_range_of_the_batch(batch, ranks, accumulate):
    for micro in range(accumulate):
        indices = [index for rank in range(ranks) for index in micro_batch(batch, ranks, accumulate, rank, micro)]
        assert indices == list(split_range(batch, accumulate, micro))


@given(sizes, seeds, windows, st.integers(1, 12), st.integers(1, 4), st.integers(1, 3))
def test_training_reads_every_sample_once_per_epoch_on_any_number_of_ranks(sizes, seed, window, batch, ranks, accumulate):
    """Two epochs of steps: the samples of a step do not depend on the number of ranks, and each occurs twice in all."""
    total = sum(sizes)
    steps = -(-2 * total // batch)
    order = Order(sizes, seed, window)
    trained: list[tuple[int, int]] = []
    for step in range(steps):
        taken = sorted(
            step * batch + index
            for rank in range(ranks)
            for micro in range(accumulate)
            for index in micro_batch(batch, ranks, accumulate, rank, micro)
        )
        assert taken == list(range(step * batch, (step + 1) * batch))
        trained += samples_at(order, taken)
    counts = Counter(sample for epoch, sample in trained if epoch < 2)
    assert counts == dict.fromkeys(range(total), 2)


# ------------------------------------------------------------------------------------------- prefetching


@given(sizes, seeds, windows, st.integers(0, 200))
def test_shards_are_listed_in_time_for_every_sample_and_in_the_order_of_need(sizes, seed, window, position):
    """The shard of every sample is listed with a position at or before it, in the same epoch."""
    order = Order(sizes, seed, window)
    end = position + 2 * sum(sizes)
    needs = list(itertools.takewhile(lambda need: need[1] < end, order.shards_from(position)))
    assert [begin for _, begin in needs] == sorted(begin for _, begin in needs)
    for current in range(position, end):
        epoch, sample = order.at(current)
        begins = [begin for shard, begin in needs if shard == order.locate(sample)[0] and begin // sum(sizes) == epoch]
        assert begins, "not listed"
        assert begins[0] <= current


# ----------------------------------------------------------------------------------------------------- several data sets

weights = st.lists(st.integers(1, 9), min_size=1, max_size=4)


def test_a_mix_of_three_to_one_to_two_is_evenly_spaced():
    assert [number for number, _ in Mix([3, 1, 2]).pattern] == [0, 2, 0, 1, 2, 0]


@given(weights, st.integers(0, 10**6))
def test_a_mix_reads_every_data_set_in_order_and_by_its_weight(weights, start):
    """Any two patterns of positions contain each data set twice its weight times, without a gap."""
    mix = Mix(weights)
    positions = [mix(position) for position in range(start, start + 2 * sum(weights))]
    for number, weight in enumerate(weights):
        of_set = [local for other, local in positions if other == number]
        assert of_set == list(range(of_set[0], of_set[0] + 2 * weight))


@given(weights, st.integers(0, 10**12))
def test_a_mix_has_an_inverse(weights, position):
    mix = Mix(weights)
    number, local = mix(position)
    assert mix.position(number, local) == position
    assert mix.first_from(number, position) == local
    for other in range(len(weights)):
        after = mix.position(other, mix.first_from(other, position))
        assert position <= after < position + sum(weights)


@given(weights)
def test_the_beginning_of_a_mix_is_close_to_the_weights(weights):
    """After n positions, a data set of weight w has read n w / W of them, within one."""
    mix, counts = Mix(weights), [0] * len(weights)
    for position, (number, _) in enumerate(mix.pattern, start=1):
        counts[number] += 1
        assert all(
            abs(count - position * w / sum(weights)) <= 1 for count, w in zip(counts, weights, strict=True) if len(weights) < 3
        )


@given(st.lists(sizes, min_size=1, max_size=3), seeds, windows, st.data())
def test_every_data_set_of_a_mix_has_exact_epochs(data_sets, seed, window, data):
    weights = data.draw(st.lists(st.integers(1, 4), min_size=len(data_sets), max_size=len(data_sets)))
    batch, ranks, accumulate = (data.draw(st.integers(1, high)) for high in (9, 4, 3))
    mix = Mix(weights)
    orders = [Order(sizes, seed_of(seed, number), window) for number, sizes in enumerate(data_sets)]
    end = max(mix.position(number, 2 * sum(sizes) - 1) + 1 for number, sizes in enumerate(data_sets))
    seen: Counter = Counter()
    for step in range(-(-end // batch)):
        for rank in range(ranks):
            for micro in range(accumulate):
                for index in micro_batch(batch, ranks, accumulate, rank, micro):
                    number, local = mix(step * batch + index)
                    epoch, sample = orders[number].at(local)
                    seen[number, epoch, sample] += 1
    for number, sizes in enumerate(data_sets):
        for epoch in (0, 1):
            assert [seen[number, epoch, sample] for sample in range(sum(sizes))] == [1] * sum(sizes)


def test_weights_become_the_smallest_whole_numbers():
    assert whole_weights([1.0]) == [1]
    assert whole_weights([0.7, 0.3]) == [7, 3]
    assert whole_weights([2.0, 4.0, 6.0]) == [1, 2, 3]
    assert whole_weights([1.0, 0.125]) == [8, 1]


def test_data_sets_of_one_run_are_shuffled_independently():
    assert seed_of(5, 0) == 5
    assert len({seed_of(5, number) for number in range(50)}) == 50


# ------------------------------------------------------------------------------------------------------- random numbers


def splitmix64(state: int) -> int:
    """One step of Sebastiano Vigna's generator, with the wrapping integers of numpy."""
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


@given(st.lists(st.tuples(seeds, st.integers(0, 2**32), st.integers(0, 2**40)), min_size=1, max_size=5))
def test_many_draws_at_once_are_the_same_numbers(numbers):
    seed, epoch, sample = np.array([(seed % 2**64, *others) for seed, *others in numbers], np.uint64).T[..., None]
    uses = np.array([CROP, TURN], np.uint64)
    assert draw(seed, epoch, sample, uses).tolist() == [[draw(*of, use) for use in (CROP, TURN)] for of in numbers]


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
    assert max(abs(share - 0.5) for share in shares) < 5 * 0.5 / np.sqrt(8000)  # five standard deviations


@given(
    st.integers(0, 2**64 - 1), st.integers(1, 8), st.integers(1, 20), st.integers(0, 40), st.integers(0, 40)
)  # fmt: skip
def test_a_crop_lies_inside_and_on_the_grid(bits, grid, cells, more_rows, more_columns):
    crop = grid * cells
    top, left = crop_corner(bits, crop + more_rows, crop + more_columns, crop, grid)
    assert top % grid == 0
    assert left % grid == 0
    assert 0 <= top <= more_rows
    assert 0 <= left <= more_columns


def test_crops_reach_every_corner_about_equally():
    """9 x 5 corners of an 8-pixel crop on a grid of two; 9,000 draws are 200 each, within 5 x 14."""
    counts = Counter(crop_corner(draw(0, 0, sample, CROP), 24, 16, 8, 2) for sample in range(9000))
    assert set(counts) == {(top, left) for top in range(0, 17, 2) for left in range(0, 9, 2)}
    assert max(abs(count - 200) for count in counts.values()) < 70
