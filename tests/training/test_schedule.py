import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr_dist.core.config import typed
from sr_dist.core.errors import UserError
from sr_dist.recipe.sections import Schedule
from sr_dist.training.schedule import factor


def test_constant_is_one_from_the_first_step():
    assert [factor(Schedule(), step) for step in (1, 2, 1_000_000)] == [1, 1, 1]


def test_warmup_is_linear():
    schedule = Schedule(warmup=4)
    assert [factor(schedule, step) for step in (1, 2, 3, 4, 5)] == [0.25, 0.5, 0.75, 1, 1]


def test_esrgan_halves_at_its_milestones():
    """1e-4 halved after 50k, 100k, 200k and 300k steps: the milestone itself is the last step at the old rate."""
    schedule = Schedule(name="milestones", milestones=(50_000, 100_000, 200_000, 300_000))
    steps = [1, 50_000, 50_001, 100_000, 100_001, 200_001, 300_000, 300_001, 400_000]
    assert [factor(schedule, step) for step in steps] == [1, 1, 1 / 2, 1 / 2, 1 / 4, 1 / 8, 1 / 8, 1 / 16, 1 / 16]


def test_srgan_falls_to_a_tenth():
    schedule = Schedule(name="milestones", milestones=(100_000,), factor=0.1)
    assert factor(schedule, 100_000) == 1
    assert factor(schedule, 100_001) == pytest.approx(0.1)


def test_the_cosine_falls_from_one_to_zero():
    schedule = Schedule(name="cosine", period=100)
    assert factor(schedule, 1) == pytest.approx((1 + math.cos(math.pi / 100)) / 2)
    # cos 45 = 0.7071, cos 60 = 0.5, cos 90 = 0, cos 120 = -0.5 degrees
    expected = {25: (1 + math.sqrt(0.5)) / 2, 50: 0.5, 100: 0.0}
    assert {step: factor(schedule, step) for step in expected} == pytest.approx(expected, abs=1e-12)
    assert factor(Schedule(name="cosine", period=90), 30) == pytest.approx(0.75)
    assert factor(Schedule(name="cosine", period=90), 60) == pytest.approx(0.25)


def test_the_cosine_does_not_rise_again():
    assert factor(Schedule(name="cosine", period=100), 150) == pytest.approx(0, abs=1e-12)


def test_a_cosine_with_restarts_begins_again_after_each_period():
    """As BasicSR's CosineAnnealingRestartLR, which counts steps from 0: the last step of a period has the lowest rate."""
    schedule = Schedule(name="cosine", period=100, restart=True, lowest=0.2)
    expected = {50: 0.6, 100: 0.2, 150: 0.6, 200: 0.2, 350: 0.6}
    assert {step: factor(schedule, step) for step in expected} == pytest.approx(expected)
    assert factor(schedule, 101) == factor(schedule, 1)


def test_restarts_of_anything_but_a_cosine_are_refused():
    with pytest.raises(UserError, match=r"^schedule: restart and lowest are for a cosine; schedule.name is milestones"):
        typed(Schedule, {"name": "milestones", "milestones": ["5"], "restart": "true"}, "schedule")


def test_warmup_multiplies_the_others():
    assert factor(Schedule(name="cosine", period=100, warmup=100), 50) == pytest.approx(0.25)
    assert factor(Schedule(name="milestones", milestones=(2,), warmup=8), 4) == pytest.approx(0.25)


@given(st.integers(1, 10_000), st.integers(0, 500), st.sampled_from(["constant", "milestones", "cosine"]))
def test_the_factor_stays_between_zero_and_one(step, warmup, name):
    schedule = Schedule(name=name, warmup=warmup, milestones=(100, 1000), period=5000)
    assert 0 <= factor(schedule, step) <= 1


@pytest.mark.parametrize(("given", "key"), [({"name": "cosine"}, "period"), ({"name": "milestones"}, "milestones")])
def test_a_missing_schedule_key_is_named(given, key):
    with pytest.raises(UserError, match=rf"schedule.*{key}"):
        typed(Schedule, given, "schedule")
