"""The command line: a settings class is a command's words and options, its help and its error messages.

Fire splits the words and nothing more: it would run the function before it reports an unknown flag, and guess types
(`2024_01` becomes 202401). Types come from the settings class.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import fire
from fire.decorators import SetParseFn
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from sr_dist.core.config import Settings, SettingsType, typed
from sr_dist.core.errors import UserError, nearest

Words = list[str]
Options = dict[str, str]
WIDTH, INDENT = 128, 27  # of help, in characters


@dataclass(frozen=True)
class Word:
    """Marks a field as a positional word of the command: `Annotated[str, Word("RECIPE")]`."""

    name: str


@dataclass(frozen=True)
class Overrides:
    """Marks a field that receives every option that is no field: `--key.sub=value` of a recipe."""


def run(settings: type[SettingsType], work: Callable[[SettingsType], int | None], argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    return run_words(lambda words, options: work(parsed(settings, words, options)), lambda: help_text(settings), argv)


def run_words(
    work: Callable[[Words, Options], int | None], help_of: Callable[[], str], argv: Sequence[str] | None = None
) -> int:  # fmt: skip
    """Answers `--help`, splits the words, and turns a user's mistake into one line and exit code 2."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if {"-h", "--help"} & set(argv):
        print(help_of())
        return 0
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a user's own parts are looked for where the command was given
    try:
        return work(*split(argv)) or 0
    except UserError as mistake:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {mistake}".replace("\n", " "), file=sys.stderr, flush=True)
        return 2


def split(argv: Sequence[str]) -> tuple[Words, Options]:
    """`RECIPE --data.batch=8 --dry_run` -> (["RECIPE"], {"data.batch": "8", "dry_run": "true"}); everything stays text."""
    for word in argv:
        if word.startswith("-") and not re.match(r"--[^=-]", word):
            raise UserError(f"'{word}': options have two dashes: --key=value")
    words: Words = []
    options: Options = {}

    @SetParseFn(str)
    def collect(*positional: str, **named: str) -> None:
        words.extend(positional)
        options.update(named)

    fire.Fire(collect, command=[_as_option(word) for word in argv])
    return words, options


def _as_option(word: str) -> str:
    """A bare `--flag` means true. It gets a `=`, so that Fire does not take the word after it as its value."""
    return f"{word}=true" if word.startswith("--") and "=" not in word else word


def parsed(settings: type[SettingsType], words: Words, options: Options) -> SettingsType:
    """Words and options as settings."""
    fields = by_option(settings)
    names = {name: word.name for name, field in fields.items() if (word := _marker(field, Word))}
    required = [word for name, word in names.items() if fields[name].is_required()]
    only(words, *required, most=len(names))
    values: dict[str, Any] = dict(zip(names, words, strict=False))
    rest = next((name for name, field in fields.items() if _marker(field, Overrides)), None)
    for name, text in options.items():
        if name in names:
            raise UserError(f"{name}: this is a word of the command, not an option; --help shows how to call it")
        if rest and (name not in fields or name == rest):
            values.setdefault(rest, {})[name] = text
        elif name not in fields:
            known = [field for field in fields if field not in names]
            raise UserError(f"{name}: unknown option{nearest(name, known)}")
        else:
            values[name] = text
    return typed(settings, values)


def by_option(settings: type[Settings]) -> dict[str, FieldInfo]:
    """The fields by the names that options have, which differ where an alias is given."""
    return {field.alias or name: field for name, field in settings.model_fields.items()}


def only(words: Words, *names: str, most: int | None = None) -> Words:
    """Checks the number of words that are not options: `only(words, "RECIPE")`."""
    most = len(names) if most is None else most
    if len(words) < len(names):
        raise UserError(f"{names[len(words)]} is missing; --help shows how to call this")
    if len(words) > most:
        raise UserError(f"'{words[most]}' is one word too many (options are written --key=value); see --help")
    return words


# ---------------------------------------------------------------------------------------------------------------- help


def help_text(settings: type[Settings], *more: tuple[str, type[Settings]]) -> str:
    """The help of a command: usage, what it does, its words, its options. `more` are further titled groups of options."""
    fields = by_option(settings)
    words = {name: word.name for name, field in fields.items() if (word := _marker(field, Word))}
    usage = " ".join(word if fields[name].is_required() else f"[{word}]" for name, word in words.items())
    about, _, notes = inspect.cleandoc(settings.__doc__ or "").partition("\n\n")
    lines = [f"Usage: python -m {_program(settings)} {usage} [--key=value ...]", "", *_wrapped(about), ""]
    for name, word in words.items():
        lines += _entry(word, fields[name].description or "")
    options = {name: field for name, field in fields.items() if name not in words and not _marker(field, Overrides)}
    for title, group in (("Options", options), *((title, by_option(extra)) for title, extra in more)):
        if group:
            lines += ["", f"{title}:", *(line for name, field in group.items() for line in _option(name, field))]
    if notes:
        lines += ["", *(line for paragraph in notes.split("\n\n") for line in ("", *_wrapped(paragraph)))][1:]
    return "\n".join(lines)


def _program(settings: type[Settings]) -> str:
    module = sys.modules[settings.__module__]
    spec = module.__spec__
    return spec.name if spec else settings.__module__


def _option(name: str, field: FieldInfo) -> list[str]:
    kind = _kind(field.annotation)
    default = "" if field.is_required() else f" [{_default(field)}]"
    required = " (required)" if field.is_required() else ""
    return _entry(f"--{name}={kind}" if kind != "true|false" else f"--{name}", f"{field.description or ''}{required}{default}")


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None or value is PydanticUndefined or value in ((), {}, ""):
        return "default: none"
    if isinstance(value, tuple):
        value = ",".join(map(str, value))
    return f"default: {str(value).lower() if isinstance(value, bool) else value}"


def _kind(annotation: Any) -> str:
    """A field's type in one word."""
    if get_origin(annotation) is Annotated:
        return _kind(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return _kind(next(member for member in get_args(annotation) if member is not NoneType))
    if get_origin(annotation) is Literal:
        return "|".join(map(str, get_args(annotation)))
    kinds = {int: "INTEGER", float: "NUMBER", bool: "true|false", str: "TEXT", Path: "PATH", tuple: "A,B", dict: "{KEY: VALUE}"}
    return kinds.get(get_origin(annotation) or annotation, "TEXT")


def _entry(head: str, text: str) -> list[str]:
    lines = textwrap.wrap(" ".join(text.split()), WIDTH - INDENT) or [""]
    if len(head) + 3 > INDENT:
        return [f"  {head}", *(" " * INDENT + line for line in lines)]
    return [f"  {head:<{INDENT - 3}} {lines[0]}".rstrip(), *(" " * INDENT + line for line in lines[1:])]


def _wrapped(text: str) -> list[str]:
    """Paragraphs are wrapped; indented lines stay as they are."""
    if any(line.startswith(" ") for line in text.splitlines()):
        return text.splitlines()
    return textwrap.wrap(" ".join(text.split()), WIDTH)


def _marker(field: FieldInfo, kind: type[Any]) -> Any:
    return next((mark for mark in field.metadata if isinstance(mark, kind)), None)
