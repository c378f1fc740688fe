"""The command line: a settings class defines the words and options of a command, its help and its error messages.

Fire only splits the words. It would run the function before it reports an unknown option, and it guesses types (`2024_01`
becomes 202401); types come from the settings class.
"""

from __future__ import annotations

import inspect
import io
import os
import re
import select
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

import fire
from fire.decorators import SetParseFn
from pydantic.fields import FieldInfo

from sr_dist.core import launch_env
from sr_dist.core.config import Settings, SettingsType, typed
from sr_dist.core.errors import RunEnded, UserError, nearest
from sr_dist.core.passwords import without_passwords
from sr_dist.core.printable import printable

Words = list[str]
Options = dict[str, str]
WIDTH, INDENT = 128, 27  # of help, in characters
EXIT_CODES = {
    0: "done; training: done, or saved because it was asked to stop",
    1: "anything else: a failure; images that could not be read; problems in shards; something that `doctor` calls BROKEN",
    2: "a mistake in the command or the recipe, which one line on stderr names; nothing was changed",
    130: "Ctrl-C before training began, or a second one",
    143: "SIGTERM before training began (128 + 15, as shells count it); the run folder is as it was",
}  # fmt: skip
KINDS: dict[object, str] = {int: "INTEGER", float: "NUMBER", bool: "true|false", Path: "PATH", tuple: "A,B", dict: "{KEY: VALUE}"}


@dataclass(frozen=True)
class Word:
    """Marks a field as a positional word of the command: `Annotated[str, Word("RECIPE")]`."""

    name: str


@dataclass(frozen=True)
class Overrides:
    """Marks the field that receives every option that is not a field: `--key.sub=value` for a recipe."""


Marker = TypeVar("Marker", Word, Overrides)


def run(settings: type[SettingsType], work: Callable[[SettingsType], int | None], argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    return run_words(lambda words, options: work(parse(settings, words, options)), lambda: help_text(settings), argv)


def run_words(
    work: Callable[[Words, Options], int | None], make_help: Callable[[], str], argv: Sequence[str] | None = None
) -> int:  # fmt: skip
    """Answers `--help`, splits the words, and turns a user's mistake into one line and exit code 2."""
    argv = sys.argv[1:] if argv is None else list(argv)
    sys.argv = [without_passwords(word) for word in sys.argv]  # environment.json and trackers record it
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may be no text
    try:
        return _answer(work, make_help, argv)
    except BrokenPipeError:
        if not _nobody_reads(1):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python complains again when it flushes at its end
        return 1


def _nobody_reads(descriptor: int) -> bool:
    """Whether the reader of a pipe has gone, as under `| head`."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _answer(work: Callable[[Words, Options], int | None], make_help: Callable[[], str], argv: Sequence[str]) -> int:
    if {"-h", "--help"} & set(argv):
        print(make_help(), flush=True)
        return 0
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # so that a recipe can name plug-in files in the current folder
    try:
        code = work(*split(argv)) or 0
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except UserError as mistake:
        if launch_env.prints_mistakes():
            print(f"error: {mistake}".replace("\n", " "), file=sys.stderr, flush=True)
        return 2
    except RunEnded:
        return 1
    except (PermissionError, NotADirectoryError) as problem:
        if not problem.filename:
            raise
        print(printable(f"error: '{problem.filename}' cannot be used: {problem.strerror}"), file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return 128 + signal.SIGINT


def split(argv: Sequence[str]) -> tuple[Words, Options]:
    """`RECIPE --data.batch=8 --dry_run` -> (["RECIPE"], {"data.batch": "8", "dry_run": "true"}). Values stay text."""
    for word in argv:
        if word.startswith("-") and not re.match(r"--[^=-]", word):
            raise UserError(f"'{word}': options have two dashes: --key=value")
    words: Words = []
    options: Options = {}

    @SetParseFn(str)
    def collect(*positional: str, **named: str) -> None:
        words.extend(positional)
        options.update(named)

    fire.Fire(collect, command=[_with_value(word) for word in argv])
    return words, options


def _with_value(word: str) -> str:
    """A bare `--flag` means true. Without the `=` Fire would take the next word as its value."""
    return f"{word}=true" if word.startswith("--") and "=" not in word else word


def parse(settings: type[SettingsType], words: Words, options: Options) -> SettingsType:
    """Words and options -> settings."""
    fields = _by_option(settings)
    names = _word_names(fields)
    if len(words) > len(names) and (listed := [word for word in names.values() if "[," in word]):
        raise UserError(f"'{words[len(names)]}' is one word too many; {listed[0]}: separate several with commas, without spaces")
    check_words(words, *(word for name, word in names.items() if fields[name].is_required()), most=len(names))
    values: dict[str, Any] = dict(zip(names, words, strict=False))
    overrides = next((name for name, field in fields.items() if _marker(field, Overrides)), None)
    for name, text in options.items():
        if name in names:
            raise UserError(f"{name}: this is a word of the command, not an option; see --help")
        if overrides and (name not in fields or name == overrides):
            values.setdefault(overrides, {})[name] = text
        elif name not in fields:
            raise UserError(f"{name}: unknown option{nearest(name, fields.keys() - names.keys())}")
        else:
            values[name] = text
    return typed(settings, values)


def check_words(words: Words, *names: str, most: int | None = None) -> Words:
    """Checks the number of words that are not options: `check_words(words, "RECIPE")`."""
    most = len(names) if most is None else most
    if len(words) < len(names):
        raise UserError(f"{names[len(words)]} is missing; see --help")
    if len(words) > most:
        raise UserError(f"'{words[most]}' is one word too many (options are written --key=value); see --help")
    return words


def _by_option(settings: type[Settings]) -> dict[str, FieldInfo]:
    """The fields by the names of their options: the alias where there is one."""
    return {field.alias or name: field for name, field in settings.model_fields.items()}


def _word_names(fields: dict[str, FieldInfo]) -> dict[str, str]:
    return {name: word.name for name, field in fields.items() if (word := _marker(field, Word))}


def _marker(field: FieldInfo, kind: type[Marker]) -> Marker | None:
    return next((mark for mark in field.metadata if isinstance(mark, kind)), None)


# ---------------------------------------------------------------------------------------------------------------- help


class Entry(NamedTuple):
    """A word or an option of a command."""

    head: str  # METHOD, --data=TEXT
    text: str
    default: str | None  # None: it is required; empty: it needs none


def words_of(settings: type[Settings]) -> list[Entry]:
    fields = _by_option(settings)
    names = _word_names(fields).items()
    return [Entry(word, fields[name].description or "", None if fields[name].is_required() else "") for name, word in names]


def options_of(settings: type[Settings]) -> list[Entry]:
    fields = _by_option(settings)
    names = _word_names(fields)
    return [_option(name, field) for name, field in fields.items() if name not in names]


def help_text(settings: type[Settings], *groups: tuple[str, type[Settings]]) -> str:
    """The help of a command: usage, description, words and options. `groups` are further options, each under a title."""
    words = words_of(settings)
    usage = [word.head if word.default is None else f"[{word.head}]" for word in words]
    about, _, notes = inspect.cleandoc(settings.__doc__ or "").partition("\n\n")
    lines = [" ".join(["Usage: python -m", _module_name(settings), *usage, "[--key=value ...]"]), "", *_wrapped(about)]
    if words:
        lines += ["", *(line for word in words for line in _entry(word.head, word.text))]
    sections = [("Options", options_of(settings))]
    sections += [(title, [_option(name, field) for name, field in _by_option(group).items()]) for title, group in groups]
    for title, options in sections:
        if options:
            lines += ["", f"{title}:", *(line for option in options for line in _entry(option.head, _with_default(option)))]
    for paragraph in notes.split("\n\n") if notes else ():
        lines += ["", *_wrapped(paragraph)]
    return "\n".join(lines)


def _module_name(settings: type[Settings]) -> str:
    spec = sys.modules[settings.__module__].__spec__  # of __main__, the name that follows `python -m`
    return spec.name if spec else settings.__module__


def _option(name: str, field: FieldInfo) -> Entry:
    text = field.description or ""
    if _marker(field, Overrides):
        return Entry("--KEY=VALUE", text, "")
    kind = _kind(field.annotation)
    head = f"--{name}" if kind == KINDS[bool] else f"--{name}={kind}"
    return Entry(head, text, None if field.is_required() else _default(field))


def _with_default(option: Entry) -> str:
    if option.default is None:
        return f"{option.text} (required)"
    return f"{option.text} [default: {option.default}]" if option.default else option.text


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if value in (None, (), {}, ""):
        return "none"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _kind(annotation: Any) -> str:
    """A field's type in one word."""
    if get_origin(annotation) is Annotated:
        return _kind(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return _kind(next(member for member in get_args(annotation) if member is not NoneType))
    if get_origin(annotation) is Literal:
        return "|".join(map(str, get_args(annotation)))
    return KINDS.get(get_origin(annotation) or annotation, "TEXT")


def _entry(head: str, text: str) -> list[str]:
    """A word or option in the left column, its wrapped text in the right one."""
    lines = textwrap.wrap(" ".join(text.split()), WIDTH - INDENT)
    right = [" " * INDENT + line for line in lines]
    if not right or len(head) + 3 > INDENT:
        return [f"  {head}", *right]
    return [f"  {head:<{INDENT - 3}} {lines[0]}", *right[1:]]


def _wrapped(paragraph: str) -> list[str]:
    """Paragraphs are wrapped. A paragraph with indented lines stays as it is."""
    if any(line.startswith(" ") for line in paragraph.splitlines()):
        return paragraph.splitlines()
    return textwrap.wrap(" ".join(paragraph.split()), WIDTH)
