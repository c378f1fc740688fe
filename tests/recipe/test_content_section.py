from __future__ import annotations

import pytest

from sr_dist.core.errors import UserError
from sr_dist.recipe.content import content_sections


def test_content_terms_have_weights_and_options():
    terms = content_sections({"l1": "0.01", "vgg": {"weight": "2", "layers": "conv5_4"}, "mse": {"range": "-1..1"}, "tv": 0})
    expected = {"l1": (0.01, {}), "vgg": (2.0, {"layers": "conv5_4"}), "mse": (1.0, {"range": "-1..1"}), "tv": (0.0, {})}
    assert {name: (section.weight, section.options) for name, section in terms.items()} == expected


def test_the_section_itself_does_not_change():
    content = {"vgg": {"weight": "2", "layers": "conv5_4"}}
    content_sections(content)
    assert content == {"vgg": {"weight": "2", "layers": "conv5_4"}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("l1", r"^objective\.content: needs terms with weights, such as \{l1: 1\.0\}; got 'l1'$"),
        (["l1"], r"^objective\.content: needs terms with weights"),
        ({}, r"^objective\.content: names no term; choose from l1, mse, vgg "),
        ({"l1": "much"}, r"^objective\.content\.l1: 'much' is not a weight \(a number\)$"),
        ({"vgg": {"weight": ["1"]}}, r"^objective\.content\.vgg: \['1'\] is not a weight"),
        ({"l1": "-1"}, r"^objective\.content\.l1: the weight -1 is not a finite number of at least 0$"),
        ({"l1": "nan"}, r"^objective\.content\.l1: the weight nan is not a finite number"),
        ({"l1": "inf"}, r"^objective\.content\.l1: the weight inf is not a finite number"),
    ],
)
def test_weights_that_are_not_weights_are_refused(content, message):
    with pytest.raises(UserError, match=message):
        content_sections(content)
