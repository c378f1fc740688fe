"""The parts that pydantic adds to the location of an error in a union. core/config.py removes them from the key in messages."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import ValidationError

from sr_dist.core.config import UNION_TAGS, Names, Settings, typed
from sr_dist.core.errors import UserError


class Unions(Settings):
    labels: Literal["class"] | tuple[int, ...] = "class"
    metrics: Names | Literal["all"] = "all"


@pytest.mark.parametrize(
    ("values", "tags"),
    [
        ({"labels": ["x"]}, {"literal['class']", "tuple[int, ...]"}),
        ({"metrics": [{}]}, {"function-before[parse_list(), tuple[str, ...]]", "literal['all']"}),
    ],
)
def test_tags_of_union_members(values, tags):
    with pytest.raises(ValidationError) as caught:
        Unions.model_validate(values)
    parts = {part for error in caught.value.errors() for part in error["loc"] if isinstance(part, str)}
    assert parts - set(values) == tags
    assert all(tag.startswith(UNION_TAGS) for tag in tags)


def test_a_message_names_only_the_key():
    with pytest.raises(UserError, match=r"^labels: "):
        typed(Unions, {"labels": ["x"]})
