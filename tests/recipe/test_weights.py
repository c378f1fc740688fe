"""Weights of losses: numbers, or numbers by step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr_dist.core import config
from sr_dist.core.errors import UserError
from sr_dist.recipe import checks, shipped
from sr_dist.recipe.content import content_sections
from sr_dist.recipe.sections import Recipe
from sr_dist.recipe.weights import parse_weight, weight_at


def test_a_number_is_the_weight_of_every_step():
    assert [weight_at(parse_weight("1e-2"), step) for step in (0, 1, 10**9)] == [0.01] * 3


def test_between_two_steps_the_weight_is_on_the_line():
    """From 1 at step 0 to 0.2 at step 100: 0.6 at step 50, then to 1.2 at step 200: 0.7 at 150."""
    weight = parse_weight({"100": "0.2", "0": "1.0", "200": "1.2"})
    expected = {0: 1.0, 25: 0.8, 50: 0.6, 100: 0.2, 150: 0.7, 200: 1.2, 10_000: 1.2}
    assert {step: weight_at(weight, step) for step in expected} == pytest.approx(expected)
    assert weight_at(parse_weight({10: 2.0}), 3) == 2.0


@given(st.dictionaries(st.integers(0, 1000), st.floats(0, 10), min_size=1), st.integers(0, 2000))
def test_a_weight_stays_between_its_points(points, step):
    weight = weight_at(parse_weight(points), step)
    assert min(points.values()) - 1e-9 <= weight <= max(points.values()) + 1e-9
    assert step not in points or weight == points[step]


def test_sections_take_weights_by_step_alone_and_beside_options():
    sections = content_sections(
        {"l1": {"0": "1", "10": "0"}, "vgg": {"weight": {"5": "2"}, "layers": "conv1_1", "sharpen": "true"}}
    )
    assert sections == {"l1": ({0: 1.0, 10: 0.0}, {}, False), "vgg": ({5: 2.0}, {"layers": "conv1_1"}, True)}


def test_none_leaves_a_term_out():
    assert list(content_sections({"l1": "1", "vgg": "none", "tv": None})) == ["l1"]
    with pytest.raises(UserError, match=r"^objective\.content: names no term"):
        content_sections({"vgg": "none"})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"0": "1", "10": "x"}, r"^objective\.content\.l1: 'x' is not a weight \(a number\)$"),
        ({"weight": {"first": "1"}}, r"^objective\.content\.l1: 'first' is not a step; "),
        ({"weight": {}}, r"^objective\.content\.l1: a weight by step needs at least one step"),
        ({"0": "-2"}, r"^objective\.content\.l1: the weight -2 is not a finite number of at least 0$"),
        ({"-5": "2"}, r"^objective\.content\.l1: '-5' is not a step"),
        ({"5": "2", "05": "3"}, r"^objective\.content\.l1: one of the steps 5, 05 occurs twice$"),
        ({"sharpen": "much"}, r"^objective\.content\.l1\.sharpen: 'much' is neither true nor false$"),
    ],
)
def test_weights_by_step_that_cannot_be_are_refused(section, message):
    with pytest.raises(UserError, match=message):
        content_sections({"l1": section})


def test_a_weight_by_step_survives_the_run_folders_recipe():
    """A run compares its recipe with recipe.yaml when it continues; steps are text there."""
    tree = config.override(
        config.read(shipped.locate("esrgan_x4")),
        {"objective.adversarial_weight": "{0: 0, 1000: 5e-3}", "objective.content.vgg.weight": "{5: 1.0, 10: 0.5}"},
    )
    first = checks.with_defaults(config.typed(Recipe, tree))
    again = checks.with_defaults(config.typed(Recipe, config.parse(config.text(first))))
    assert config.text(again) == config.text(first)
    assert again.objective.options["content"]["vgg"]["weight"] == {5: 1.0, 10: 0.5}
    assert parse_weight(again.objective.options["adversarial_weight"]) == {0: 0.0, 1000: 0.005}
