"""The `objective.content` section: `{l1: 0.01, vgg: {weight: 1, layers: conv5_4}}`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from sr_dist.core.errors import UserError


class ContentSection(NamedTuple):
    weight: float
    options: dict[str, Any]


def content_sections(content: Any) -> dict[str, ContentSection]:
    """Each content term by name, with its weight and its own options."""
    if not isinstance(content, Mapping):
        raise UserError(f"objective.content: needs terms with weights, such as {{l1: 1.0}}; got {content!r}")
    sections = {}
    for name, section in content.items():
        options = dict(section) if isinstance(section, Mapping) else {"weight": section}
        sections[name] = ContentSection(_weight(name, options.pop("weight", "1")), options)
    if not sections:
        raise UserError("objective.content: names no term; choose from l1, mse, vgg and the other files of losses/content")
    return sections


def _weight(name: str, text: Any) -> float:
    try:
        weight = float(text)
    except (TypeError, ValueError):
        raise UserError(f"objective.content.{name}: {text!r} is not a weight (a number)") from None
    if not math.isfinite(weight) or weight < 0:
        raise UserError(f"objective.content.{name}: the weight {text} is not a finite number of at least 0")
    return weight
