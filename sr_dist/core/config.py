"""YAML and `--key=value` -> frozen typed settings.

Every value is read as text, from files and from the command line, and is typed once, by its field: `1e-4` becomes a number,
`no` stays a word where the field is text, `2024_01` stays a name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from sr_dist.core.errors import UserError, nearest, nearest_path
from sr_dist.core.files import read_regular
from sr_dist.core.passwords import tree_without_passwords

Tree = dict[str, Any]  # nested sections; leaves are text or lists of text
LARGEST, MOST_VALUES, DEEPEST = 4_000_000, 100_000, 50  # bytes, values (an alias counts whole) and levels of a YAML text
LONGEST_INPUT = 200  # characters of a value in an error
UNION_TAGS = ("function-", "tuple[", "literal[")  # pydantic adds these parts to the location of an error in a union


class Settings(BaseModel):
    """A section of a recipe or the options of a command. Frozen; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


SettingsType = TypeVar("SettingsType", bound=Settings)


def parse_none(value: Any) -> Any:
    """`none`, `null`, `~` and empty text -> None."""
    return None if isinstance(value, str) and value.strip().lower() in ("", "none", "null", "~") else value


def parse_list(value: Any) -> Any:
    """`a,b` or `[a, b]` as text -> ("a", "b")."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.removeprefix("[").removesuffix("]").split(",") if part.strip())
    return () if value is None else value


def parse_section(value: Any) -> Any:
    """A section in YAML's short form, `{a: 1}`, if it is given as text."""
    try:
        return parse(value) if isinstance(value, str) and value.startswith("{") else value
    except yaml.YAMLError:
        raise ValueError(f"'{value}' is not a section in YAML's short form, such as {{a: 1, b: 2}}") from None


def _parse_exponent(value: Any) -> Any:
    """`1e5` and `2.5e3`, where they are whole numbers."""
    if isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?[eE]\+?\d{1,2}", value.strip()):
        number = Decimal(value.strip())
        return int(number) if number == number.to_integral_value() else value
    return value


Positive = Annotated[int, Field(gt=0), BeforeValidator(_parse_exponent)]
NonNegative = Annotated[int, Field(ge=0), BeforeValidator(_parse_exponent)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Whole = BeforeValidator(lambda value: int(value) if isinstance(value, str) and value.isdigit() else value)  # for Literal[1, 3]
Absent = BeforeValidator(parse_none)  # Annotated[int | None, Absent]: `none`, `null` and empty text mean None
OptionalText = Annotated[str | None, Absent]
OptionalPositive = Annotated[Positive | None, Absent]
Names = Annotated[tuple[str, ...], BeforeValidator(parse_list)]  # `a,b` or [a, b]


class _Loader(yaml.BaseLoader):
    """Every scalar becomes text. What has no meaning in a recipe is refused before anything is built from it."""

    def construct_document(self, node: yaml.Node) -> Any:
        count, _ = _measure(node, 0, {})
        if count > MOST_VALUES:
            raise UserError(f"it holds more than {MOST_VALUES} values")
        return super().construct_document(node)


def _measure(node: yaml.Node, depth: int, measured: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """The number of values and of levels of a node. A node that aliases repeat is visited once and counted each time."""
    if id(node) in measured:
        count, height = measured[id(node)]
    elif isinstance(node, yaml.ScalarNode):
        _check_text(node)
        count, height = 1, 1
    else:
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
        children = node.value if isinstance(node, yaml.SequenceNode) else [child for pair in node.value for child in pair]
        inside = [_measure(child, depth + 1, measured) for child in children] if depth < DEEPEST else [(1, 1)]
        count, height = 1 + sum(count for count, _ in inside), 1 + max((height for _, height in inside), default=0)
    if depth + height > DEEPEST:
        raise UserError(f"line {node.start_mark.line + 1}: lists and sections are nested more than {DEEPEST} levels deep")
    measured[id(node)] = count, height
    return count, height


def _check_keys(node: yaml.MappingNode) -> None:
    """Refuses keys that are no text, and a key that occurs twice; YAML itself silently keeps the last."""
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"line {key.start_mark.line + 1}: a list or section cannot be a key")
        if key.value in seen:
            raise UserError(f"line {key.start_mark.line + 1}: the key '{key.value}' occurs twice")
        seen.add(key.value)


def _check_text(node: yaml.ScalarNode) -> None:
    """Refuses text that no file can have as its name or its content."""
    try:
        valid = b"\0" not in os.fsencode(node.value)
    except UnicodeEncodeError:
        valid = False
    if not valid:
        raise UserError(f"line {node.start_mark.line + 1}: {_shortened(node.value)} has a character that is not allowed")


def parse(text: str) -> Any:
    """YAML with every scalar as text."""
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise UserError(f"lists and sections are nested more than {DEEPEST} levels deep") from None


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_INPUT else f"{text[:LONGEST_INPUT]}..."


def read(path: str | Path) -> Tree:
    """The sections of a YAML file, all scalars as text."""
    path = Path(path)
    try:
        tree = parse(read_regular(path, LARGEST, "a recipe").decode())
    except FileNotFoundError:
        files = [file for folder in (Path("configs"), path.parent) for file in folder.glob("*.yaml")]
        raise UserError(f"no recipe '{path}'{nearest_path(path, among=files)}") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"'{path}' cannot be read: {problem}") from None
    except ValueError as mistake:
        raise UserError(f"'{path}': {mistake}") from None
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"'{path}'{line} is not YAML: {getattr(problem, 'problem', problem)}") from None
    if not isinstance(tree, dict):
        raise UserError(f"'{path}' has no sections (key: value)")
    return tree


def override(tree: Tree, options: Mapping[str, str]) -> Tree:
    """A copy of the tree with options such as `{"data.batch": "8"}` set. Values that begin with [ or { are lists or sections."""
    tree = _copy(tree)
    for key, text in options.items():
        if "{" in key or ":" in key:
            place = re.split(r"[.:{]*[{:]", key)[0]
            raise UserError(
                f"'{_shortened(key)[1:-1]}' is no key; a section in short form follows the =, with quotes and a space after the "
                f"colon: --{place}='{{name: value}}'"
            )
        *sections, last = key.split(".")
        if len(sections) >= DEEPEST:
            raise UserError(f"{_shortened(key)}: has more than {DEEPEST} sections")
        section = tree
        for depth, name in enumerate(sections):
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                raise UserError(f"{key}: '{'.'.join(sections[: depth + 1])}' is not a section")
        section[last] = _parse_value(key, text)
    return tree


def _copy(tree: Any) -> Any:
    return {key: _copy(value) for key, value in tree.items()} if isinstance(tree, dict) else tree


def _parse_value(key: str, text: str) -> Any:
    if not text.startswith(("[", "{")):
        return text
    try:
        value = parse(text)
    except yaml.YAMLError:
        raise UserError(f"{key}: {_shortened(text)} is not a list or section in YAML's short form") from None
    except UserError as mistake:
        raise UserError(f"{key}: {mistake}") from None
    glued = [name for name, inside in value.items() if ":" in name and inside == ""] if isinstance(value, dict) else []
    if glued:
        raise UserError(f"{key}: {_shortened(text)}: a space follows each colon, as in '{{{glued[0].replace(':', ': ', 1)}}}'")
    return value


def typed(model: type[SettingsType], tree: Mapping[str, Any], section: str = "") -> SettingsType:
    """The tree as settings. Raises UserError about its first mistake. `section` is the tree's key in the recipe."""
    try:
        return model.model_validate(dict(tree))
    except ValidationError as problem:
        raise UserError(_one_line(model, problem, section)) from None


def _one_line(model: type[BaseModel], problem: ValidationError, section: str) -> str:
    errors = problem.errors(include_url=False)
    # A misspelt key often leaves another one missing, so the unknown key is reported first.
    first = min(errors, key=lambda error: error["type"] != "extra_forbidden")
    unknown = first["type"] == "extra_forbidden"
    parents = first["loc"][:-1] if unknown else first["loc"]
    path = [str(part) for part in parents if not str(part).startswith(UNION_TAGS)]
    path += [str(first["loc"][-1])] if unknown else []
    key = ".".join([section, *path] if section else path)[:LONGEST_INPUT]
    if unknown:
        inner = _model_at(model, path[:-1])
        if near := sorted(_deeper_keys(inner, path[-1]), key=len):
            return f"{key}: unknown key; did you mean '{key.removesuffix(path[-1])}{near[0]}'?"
        return f"{key}: unknown key{nearest(path[-1], inner.model_fields, key.removesuffix(path[-1]))}"
    if first["type"] == "missing":
        return f"{key}: this key is missing"
    if first["type"] == "value_error":
        return f"{key}: {first['ctx']['error']}" if key else str(first["ctx"]["error"])
    return f"{key}: {first['msg'][0].lower() + first['msg'][1:]}; got {_shortened(first['input'])}"


def _model_at(model: type[BaseModel], path: list[str]) -> type[BaseModel]:
    for name in path:
        if name.isdigit():
            continue  # an index of a list
        for candidate in _members(model.model_fields[name].annotation):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                model = candidate
    return model


def _deeper_keys(model: type[BaseModel], name: str) -> Iterator[str]:
    """Keys of the sections of a model that have this name, or these initials: `lr` is `optimizer.learning_rate`."""
    for field, info in model.model_fields.items():
        for section in _members(info.annotation):
            if isinstance(section, type) and issubclass(section, BaseModel):
                initials = {"".join(word[:1] for word in key.split("_")): key for key in section.model_fields if "_" in key}
                last = name if name in section.model_fields else initials.get(name)
                if last:
                    yield f"{field}.{last}"


def _members(annotation: Any) -> Iterator[Any]:
    yield annotation
    for member in get_args(annotation):
        yield from _members(member)


def text(settings: Settings) -> str:
    """The settings as YAML, from which `read` and `typed` make equal settings, except for hidden passwords."""
    return tree_text(plain(settings))


def tree_text(tree: Tree) -> str:
    """Sections as YAML, in their order."""
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=100)


def plain(settings: Settings) -> Tree:
    """The settings as JSON has them, for files, logs and trackers. Passwords of URLs are hidden."""
    return tree_without_passwords(settings.model_dump(mode="json"))


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested sections -> {"data.batch": 8, ...}, to compare two recipes key by key."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    values: dict[str, Any] = {}
    for key, value in tree.items():
        values.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return values
