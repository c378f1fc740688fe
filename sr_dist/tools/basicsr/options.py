"""An option file of BasicSR, read with bookkeeping: every option ends as taken over, without an equal, or unknown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from sr_dist.core.config import Tree, flatten
from sr_dist.core.errors import UserError

Value = TypeVar("Value")
NOTHING = ("", "~", "null", "none", "None")
WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class Options:
    """The tree of an option file, and what became of its options."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.taken: dict[str, str] = {}  # option -> our key and value
        self.checks: list[str] = []  # sentences: what the user must look at
        self.without: dict[str, str] = {}  # option -> why it has no equal

    def value(self, path: str) -> Any:
        """The text, list or section at a path; None where it is missing or empty."""
        section: Any = self.tree
        for name in path.split("."):
            section = section.get(name) if isinstance(section, dict) else None
        return None if isinstance(section, str) and section.strip() in NOTHING else section

    def has(self, path: str) -> bool:
        return self.value(path) is not None

    def read(self, path: str, kind: Callable[[Any], Value], default: Value) -> Value:
        """A typed value, without a note."""
        text = self.value(path)
        if text is None:
            return default
        try:
            return kind(text)
        except (TypeError, ValueError, ArithmeticError):
            raise UserError(
                f"{path}: '{str(text)[:100]}' is not {KINDS.get(kind, 'a value that this option can have')}"
            ) from None

    def take(self, path: str, kind: Callable[[Any], Value], default: Value, ours: str) -> Value:
        """A typed value that our key `ours` gets."""
        value = self.read(path, kind, default)
        self.note(path, f"{ours}: {shown(value)}")
        return value

    def note(self, path: str, ours: str) -> None:
        """The option, or every option of the section, is taken over."""
        for leaf in self.leaves(path):
            if leaf not in self.without:
                self.taken.setdefault(leaf, ours)

    def drop(self, path: str, reason: str) -> None:
        """The option, or every option of the section, has no equal."""
        for leaf in self.leaves(path):
            if leaf not in self.taken:
                self.without.setdefault(leaf, reason)

    def leaves(self, path: str = "") -> Iterator[str]:
        section: Any = self.tree
        for name in path.split(".") if path else ():
            if not isinstance(section, dict) or name not in section:
                return
            section = section[name]
        yield from flatten(section, path)

    def unknown(self) -> list[str]:
        return [leaf for leaf in self.leaves() if leaf not in self.taken and leaf not in self.without]


def whole(text: Any) -> int:
    value = float(text)
    if value != int(value):
        raise ValueError(text)
    return int(value)


def yes(text: Any) -> bool:
    if str(text).lower() not in WORDS:
        raise ValueError(text)
    return WORDS[str(text).lower()]


def numbers(text: Any) -> list[float]:
    return [float(one) for one in (text if isinstance(text, list) else [text])]


def whole_numbers(text: Any) -> list[int]:
    return [whole(one) for one in (text if isinstance(text, list) else [text])]


def texts(value: Any) -> list[str]:
    return [str(one) for one in (value if isinstance(value, list) else [value])]


KINDS: dict[Any, str] = {
    float: "a number", whole: "a whole number", yes: "true or false", numbers: "a list of numbers",
    whole_numbers: "a list of whole numbers",
}  # fmt: skip


def shown(value: Any) -> str:
    """A value as a recipe has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return "[" + ", ".join(map(shown, value)) + "]"
    return str(value)
