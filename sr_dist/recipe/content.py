"""The `objective.content` section: `{l1: 0.01, vgg: {weight: 1, layers: conv5_4}}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from sr_dist.core.errors import UserError
from sr_dist.recipe.weights import Points, is_schedule, parse_weight

_yes_or_no = TypeAdapter(bool)


class ContentSection(NamedTuple):
    weight: float | Points
    options: dict[str, Any]
    sharpen: bool = False  # whether the target is sharpened HR

    def stated(self) -> dict[str, Any]:
        """The keys that every term has, as a recipe has them."""
        return {"weight": self.weight, **({"sharpen": True} if self.sharpen else {})}


def content_sections(content: Any) -> dict[str, ContentSection]:
    """Each content term by name, with its weight and its own options. `none` leaves a term out."""
    if not isinstance(content, Mapping):
        raise UserError(f"objective.content: needs terms with weights, such as {{l1: 1.0}}; got {content!r}")
    sections = {}
    for name, section in content.items():
        if _is_none(section):
            continue
        if section == {}:
            raise UserError(f"objective.content.{name}: {{}} has no weight and no option; write {name}: 1.0")
        options = dict(section) if isinstance(section, Mapping) and not is_schedule(section) else {"weight": section}
        weight, sharpen = _weight(name, options.pop("weight", "1")), _sharpen(name, options.pop("sharpen", False))
        sections[name] = ContentSection(weight, options, sharpen)
    if not sections:
        raise UserError("objective.content: names no term; choose from l1, mse, vgg and the other files of losses/content")
    return sections


def _is_none(section: Any) -> bool:
    return section is None or (isinstance(section, str) and section.strip().lower() in ("none", "null", "~"))


def _weight(name: str, value: Any) -> float | Points:
    try:
        weight = parse_weight(value)
    except ValueError as problem:
        raise UserError(f"objective.content.{name}: {problem}{AT_LEAST if 'finite' in str(problem) else ''}") from None
    for number in weight.values() if isinstance(weight, dict) else (weight,):
        if number < 0:
            text = f"{number:g}" if isinstance(weight, dict) else value
            raise UserError(f"objective.content.{name}: the weight {text} is not a finite number{AT_LEAST}")
    return weight


AT_LEAST = " of at least 0"


def _sharpen(name: str, value: Any) -> bool:
    try:
        return _yes_or_no.validate_python(value)
    except ValidationError:
        raise UserError(f"objective.content.{name}.sharpen: {value!r} is neither true nor false") from None
